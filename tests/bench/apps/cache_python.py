"""cache_python.py PASSES: the work of cache_conc.c with an asyncio cache on an OrderedDict."""
import asyncio
import collections
import sys
import time

KEYS = 1000


class AsyncCache:
    """With LRU and TTL eviction; however many tasks miss a key at once, one computation serves them."""

    def __init__(self, max_size=1000, ttl=300):
        self.max_size, self.ttl = max_size, ttl
        self.hits = self.misses = self.evictions = self.expirations = 0
        self._entries = collections.OrderedDict()
        self._computing = {}

    async def get(self, key, factory=None):
        entry = self._entries.get(key)
        if entry:
            value, expires = entry
            if expires > time.monotonic():
                self._entries.move_to_end(key)
                self.hits += 1
                return value
            del self._entries[key]
            self.expirations += 1
        self.misses += 1
        return await self._compute(key, factory)

    async def _compute(self, key, factory):
        if key not in self._computing:
            self._computing[key] = asyncio.create_task(self._call(key, factory))
        return await asyncio.shield(self._computing[key])

    async def _call(self, key, factory):
        try:
            value = await factory(key)
            while len(self._entries) >= self.max_size:
                self._entries.popitem(last=False)
                self.evictions += 1
            self._entries[key] = value, time.monotonic() + self.ttl
            return value
        finally:
            del self._computing[key]


async def value_of(key):
    return "x" * (1 + int(key.removeprefix("key:")) % 97)


async def get_all(cache, keys):
    total = 0
    for key in keys:
        total += len(await cache.get(key, value_of))
    return total


async def main(passes):
    cache = AsyncCache(KEYS, 300)
    keys = [f"key:{i}" for i in range(KEYS)]
    await get_all(cache, keys)
    total = 0
    wall, processor = time.monotonic(), time.process_time()
    for _ in range(passes):
        total += await get_all(cache, keys)
    wall, processor = time.monotonic() - wall, time.process_time() - processor
    print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {cache.hits}/{total}")


asyncio.run(main(int(sys.argv[1])))
