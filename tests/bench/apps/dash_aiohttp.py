"""dash_aiohttp.py COUNT USERS ORDERS RECOMMENDATIONS NOTIFICATIONS: the four calls of dash_conc.c with asyncio.gather and
aiohttp."""
import asyncio
import json
import sys
import time

import aiohttp

NAMES = ("users", "orders", "recommendations", "notifications")
AT_ONCE = 20


async def get_data(session, address, name, user):
    async with session.get(f"http://{address}/{name}/{user}") as response:
        return await response.json()


async def get_one(session, addresses, user):
    data = await asyncio.gather(*(get_data(session, address, name, user) for address, name in zip(addresses, NAMES)))
    dashboard = dict(zip(NAMES, data))
    json.dumps(dashboard)
    return sum(part["user"] for part in dashboard.values())


async def get_all(session, addresses, users):
    numbers, times, total = iter(users), [], 0

    async def get_some():
        nonlocal total
        for user in numbers:
            began = time.monotonic()
            found = await get_one(session, addresses, user)
            total += found
            times.append(1e3 * (time.monotonic() - began))
    await asyncio.gather(*(get_some() for _ in range(AT_ONCE)))
    return total, sorted(times)


async def main(count, *addresses):
    count = int(count)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await get_all(session, addresses, range(count, 2 * count))
        wall, processor = time.monotonic(), time.process_time()
        total, times = await get_all(session, addresses, range(count))
        wall, processor = time.monotonic() - wall, time.process_time() - processor
    p50, p99 = (times[(count - 1) * p // 100] for p in (50, 99))
    print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {len(times)}/{total} {p50:.3f} {p99:.3f}")


asyncio.run(main(*sys.argv[1:]))
