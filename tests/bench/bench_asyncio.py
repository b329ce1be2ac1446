"""bench_asyncio.py NAME [COUNT [ARMED]]: the benchmarks of bench_conc.c with asyncio. Needs Python 3.11."""
import asyncio
import random
import resource
import sys
import time

WARM_UP = 10000
BATCH = 100
HEAP = 100000


async def yielder(n):
    for _ in range(n):
        await asyncio.sleep(0)


async def yielders(tasks, n):
    await asyncio.gather(*(yielder(n // tasks) for _ in range(tasks)))


async def switch2(n):
    await yielders(2, n)


async def switch1000(n):
    await yielders(1000, n)


async def nothing():
    pass


async def spawn_join(n):
    for _ in range(n):
        await asyncio.create_task(nothing())


async def spawn_group(n):
    for _ in range(n // BATCH):
        async with asyncio.TaskGroup() as group:
            for _ in range(BATCH):
                group.create_task(nothing())


async def timeout(n):
    # The yield now and then lets the loop sort out its cancelled timers.
    for i in range(n):
        async with asyncio.timeout(1):
            await nothing()
        if i % 100 == 0:
            await asyncio.sleep(0)


def arm():
    return asyncio.get_running_loop().call_later(random.uniform(100, 10000), nothing)


async def timer_arm(n):
    loop = asyncio.get_running_loop()
    timeouts = [random.uniform(100, 10000) for _ in range(1024)]
    for i in range(n):
        loop.call_later(timeouts[i % 1024], nothing).cancel()
        if i % 1000 == 0:
            await asyncio.sleep(0)


async def lock(n):
    mutex = asyncio.Lock()
    for _ in range(n):
        await mutex.acquire()
        mutex.release()


async def lock_pass(n):
    mutex = asyncio.Lock()

    async def passer():
        async with mutex:
            for _ in range(n // 2):
                mutex.release()
                await asyncio.sleep(0)
                await mutex.acquire()
    await asyncio.gather(passer(), passer())


async def pass_items(capacity, n):
    items = asyncio.Queue(capacity)

    async def producer():
        for i in range(n):
            await items.put(i)
    task = asyncio.create_task(producer())
    for _ in range(n):
        await items.get()
    await task


async def queue1(n):
    await pass_items(1, n)


async def queue1000(n):
    await pass_items(1000, n)


async def priority(n):
    items = asyncio.PriorityQueue()
    for _ in range(0, n, HEAP):
        for _ in range(HEAP):
            await items.put(random.random())
        for _ in range(HEAP):
            await items.get()


alive = most_alive = 0


async def sleeper():
    global alive, most_alive
    alive += 1
    most_alive = max(alive, most_alive)
    await asyncio.sleep(1)
    alive -= 1


async def sleepers(n):
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(n):
            group.create_task(sleeper())
    print(f"sleepers_time {time.monotonic() - start:.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * 1e-9
    print(f"sleepers_memory {peak:.3f} GB")
    print(f"sleepers_count {n} tasks")
    print(f"sleepers_alive {most_alive} tasks")


async def measure(loop, count, armed):
    timers = [arm() for _ in range(armed)] if loop is timer_arm else []
    await loop(WARM_UP)
    start = time.monotonic()
    await loop(count)
    print(f"{loop.__name__} {(time.monotonic() - start) * 1e9 / count:.2f} ns")
    for timer in timers:
        timer.cancel()


BENCHMARKS = {
    switch2: 200000,
    switch1000: 200000,
    spawn_join: 100000,
    spawn_group: 100000,
    timeout: 100000,
    timer_arm: 1000000,
    lock: 500000,
    lock_pass: 200000,
    queue1: 100000,
    queue1000: 500000,
    priority: 100000,
    sleepers: 1000000,
}


def main():
    names = {loop.__name__: loop for loop in BENCHMARKS}
    if len(sys.argv) < 2:
        print("\n".join(names))
        return
    if sys.argv[1] not in names:
        sys.exit(2)
    loop = names[sys.argv[1]]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else BENCHMARKS[loop]
    armed = int(sys.argv[3]) if len(sys.argv) > 3 else 1000000
    asyncio.run(sleepers(count) if loop is sleepers else measure(loop, count, armed))


main()
