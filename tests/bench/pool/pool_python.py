"""pool_python.py NAME [COUNT]: the benchmarks of pool_conc.c with asyncio and concurrent.futures."""
import asyncio
import concurrent.futures
import multiprocessing
import os
import statistics
import sys
import time

ITEM = 64
BIG = 100_000_000
CHUNK = 1000
WARM_UP = 1000
COMPUTERS = 2
PROCESSORS = len(os.sched_getaffinity(0))


def threads():
    return concurrent.futures.ThreadPoolExecutor(PROCESSORS)


def processes(workers=PROCESSORS, **options):
    return concurrent.futures.ProcessPoolExecutor(workers, **options)


def nothing():
    pass


def same(data):
    return data


async def time_trips(name, n, pool, *call):
    """One after the other, and the clock is read once for each."""
    loop = asyncio.get_running_loop()
    for _ in range(n // 10 + 1):
        await loop.run_in_executor(pool, *call)
    samples = []
    before = time.monotonic()
    for _ in range(n):
        await loop.run_in_executor(pool, *call)
        now = time.monotonic()
        samples.append(now - before)
        before = now
    print(f"{name} {statistics.median(samples) * 1e6:.3f} us")


async def trip(n):
    with threads() as pool:
        await time_trips("trip", n, pool, nothing)


async def trip_idle(n):
    loop = asyncio.get_running_loop()
    samples = []
    with threads() as pool:
        await loop.run_in_executor(pool, nothing)
        for _ in range(n):
            await asyncio.sleep(0.002)
            before = time.monotonic()
            await loop.run_in_executor(pool, nothing)
            samples.append(time.monotonic() - before)
    print(f"trip_idle {statistics.median(samples) * 1e6:.3f} us")


def submit_and_wait(pool, n):
    for future in [pool.submit(nothing) for _ in range(n)]:
        future.result()


async def jobs(n):
    with threads() as pool:
        submit_and_wait(pool, WARM_UP)
        start = time.monotonic()
        submit_and_wait(pool, n)
        print(f"jobs {(time.monotonic() - start) * 1e6 / n:.4f} us")


async def proc_trip(n):
    with processes() as pool:
        await time_trips("proc_trip", n, pool, same, bytes(ITEM))


def map_all(pool, items):
    for _ in pool.map(same, items, chunksize=CHUNK):
        pass


async def proc_map(n):
    with processes() as pool:
        map_all(pool, [bytes(ITEM)] * WARM_UP * PROCESSORS)
        items = [bytes(ITEM) for _ in range(n)]
        start = time.monotonic()
        map_all(pool, items)
        print(f"proc_map {(time.monotonic() - start) * 1e6 / n:.4f} us")


async def proc_big(n):
    data = bytes([1]) * BIG
    samples = []
    with processes() as pool:
        for i in range(-1, n):
            start = time.monotonic()
            assert len(pool.submit(same, data).result()) == BIG
            if i >= 0:
                samples.append(time.monotonic() - start)
    print(f"proc_big {statistics.median(samples) * 1e3:.2f} ms")


async def beat(name, milliseconds):
    late = []
    now = time.monotonic()
    end = now + milliseconds / 1000
    while now < end:
        await asyncio.sleep(0.001)
        then = time.monotonic()
        late.append(then - now - 0.001)
        now = then
    late.sort()
    for which, percent in ("p50", 50), ("p99", 99), ("max", 100):
        print(f"{name}_{which} {late[(len(late) - 1) * percent // 100] * 1e3:.4f} ms")


async def beat_idle(milliseconds):
    with threads() as pool:
        await asyncio.get_running_loop().run_in_executor(pool, nothing)
        await beat("beat_idle", milliseconds)


def share(*both):
    global computing, stop
    computing, stop = both


def compute():
    x = 1
    computing.release()
    while not stop.value:
        for _ in range(1000):
            x = (x * 1664525 + 1013904223) % 2**32


async def beat_while_computing(name, milliseconds, pool):
    loop = asyncio.get_running_loop()
    futures = [loop.run_in_executor(pool, compute) for _ in range(COMPUTERS)]
    for _ in futures:
        while not computing.acquire(block=False):
            await asyncio.sleep(0.001)
    await beat(name, milliseconds)
    stop.value = 1
    await asyncio.gather(*futures)


async def beat_threads(milliseconds):
    share(multiprocessing.Semaphore(0), multiprocessing.RawValue("b", 0))
    with concurrent.futures.ThreadPoolExecutor(COMPUTERS) as pool:
        await beat_while_computing("beat_threads", milliseconds, pool)


async def beat_procs(milliseconds):
    shared = multiprocessing.Semaphore(0), multiprocessing.RawValue("b", 0)
    share(*shared)
    with processes(COMPUTERS, initializer=share, initargs=shared) as pool:
        await beat_while_computing("beat_procs", milliseconds, pool)


BENCHMARKS = {
    trip: 10000,
    trip_idle: 500,
    jobs: 100000,
    proc_trip: 5000,
    proc_map: 100000,
    proc_big: 2,
    beat_idle: 2000,
    beat_threads: 2000,
    beat_procs: 2000,
}


def main():
    names = {measure.__name__: measure for measure in BENCHMARKS}
    if len(sys.argv) < 2:
        print("\n".join(names))
        return
    if sys.argv[1] not in names:
        sys.exit(2)
    measure = names[sys.argv[1]]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else BENCHMARKS[measure]
    asyncio.run(measure(count))


if __name__ == "__main__":
    main()
