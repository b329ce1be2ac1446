"""sql_python.py URL COUNT [noreset]: the work of sql_conc.c with asyncio.gather and the pool of asyncpg.

That pool sends statements of its own whenever a connection comes back, to reset its session; with noreset it does not, and
the server gets the same statements as from the others. asyncpg prepares each statement once on each connection.
"""
import asyncio
import sys
import time

import asyncpg

CONNECTIONS = 10
INSERT = "INSERT INTO payments VALUES ($1, $2) RETURNING amount"
CHECK = "SELECT count(*), sum(amount) FROM payments WHERE id <= $1"


class NeverReset(asyncpg.Connection):
    async def reset(self, *, timeout=None):
        pass


async def pay(pool, number):
    async with pool.acquire() as connection:
        return await connection.fetchval(INSERT, number, number % 1000)


async def pay_all(pool, count, first):
    return sum(await asyncio.gather(*(pay(pool, first + i) for i in range(count))))


async def main(url, count, kind):
    async with asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS, connection_class=kind) as pool:
        await pool.execute("TRUNCATE payments")
        await pay_all(pool, count, count + 1)
        wall, processor = time.monotonic(), time.process_time()
        total = await pay_all(pool, count, 1)
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        if tuple(await pool.fetchrow(CHECK, count)) != (count, total):
            sys.exit("the table has something else")
        print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {count}/{total}")


asyncio.run(main(sys.argv[1], int(sys.argv[2]), NeverReset if "noreset" in sys.argv else asyncpg.Connection))
