"""Gathering: many small things from many requests become one command per shard.

One batch per shard is in flight, so its size follows the load by itself; and each waits
``GATHER_S`` for company first. (Without that wait, clients that ask again at once form two groups
that follow each other, each with half the size and the same fixed cost.)

A batch has a key, so a retry after an unknown outcome stores it once. Each item gets a future that
is resolved after the commit. The batch does not depend on its requests: a client that leaves takes
nothing with it. A full queue refuses at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from actors.handles import Shards
from manta.command import Command
from manta.errors import MantaError, Overloaded

GATHER_S = 0.010
BATCH_BYTES_MAX = 1 << 20
BATCH_ITEMS_MAX = 5_000
QUEUE_BYTES_MAX = 8 << 20
QUEUE_ITEMS_MAX = 20_000
DEADLINE_S = 15.0
Item = TypeVar("Item")

# What an item's future gives: its part of the command's answer, or the error that the command got.
Outcome = Any


@dataclass
class _Lane(Generic[Item]):
    """What waits for one shard."""

    items: list[Item] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    futures: list[asyncio.Future[Outcome]] = field(default_factory=list)
    running: asyncio.Task[None] | None = None


class Gatherer(Generic[Item]):
    """``build(items, key)`` makes the command of a batch; ``part(answer, n)`` is what its n-th item
    gets of the answer."""

    def __init__(
        self,
        shards: Shards,
        build: Callable[[Sequence[Item], str], Command],
        producer: str,
        *,
        part: Callable[[Any, int], Outcome] = lambda answer, n: answer,
        gather_s: float = GATHER_S,
    ) -> None:
        self._shards = shards
        self._build = build
        self._part = part
        self._producer = producer  # unique to this incarnation: part of each batch's key
        self._gather_s = gather_s
        self._lanes = [_Lane[Item]() for _ in range(shards.count)]
        self._batches = 0
        self.queued_items = 0
        self.queued_bytes = 0

    def add(self, shard: int, item: Item, size_bytes: int) -> asyncio.Future[Outcome]:
        """Take an item; its future is resolved when its batch is stored or has failed.

        Raises ``Overloaded`` when too much waits already.
        """
        if self.queued_items >= QUEUE_ITEMS_MAX or self.queued_bytes >= QUEUE_BYTES_MAX:
            raise Overloaded("more arrives than can be stored at present")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        lane = self._lanes[shard]
        lane.items.append(item)
        lane.sizes.append(size_bytes)
        lane.futures.append(future)
        self.queued_items += 1
        self.queued_bytes += size_bytes
        if lane.running is None:
            lane.running = loop.create_task(self._run(shard))
        return future

    async def drain(self) -> None:
        """Wait until everything taken so far has been answered."""
        running = [lane.running for lane in self._lanes if lane.running is not None]
        await asyncio.gather(*running)

    async def _run(self, shard: int) -> None:
        """Send what there is, batch after batch, until nothing waits."""
        lane = self._lanes[shard]
        while lane.items:
            await asyncio.sleep(self._gather_s)
            count = _prefix(lane.sizes)
            items, lane.items = lane.items[:count], lane.items[count:]
            sizes, lane.sizes = lane.sizes[:count], lane.sizes[count:]
            futures, lane.futures = lane.futures[:count], lane.futures[count:]
            outcome = await self._send(shard, items)
            self.queued_items -= count
            self.queued_bytes -= sum(sizes)
            failed = isinstance(outcome, MantaError)
            for n, future in enumerate(futures):
                if not future.done():
                    future.set_result(outcome if failed else self._part(outcome, n))
        lane.running = None

    async def _send(self, shard: int, items: Sequence[Item]) -> Outcome:
        self._batches += 1
        try:
            command = self._build(items, f"{self._producer}:{shard}:{self._batches}")
            return await self._shards.execute(shard, command, DEADLINE_S)
        except MantaError as error:
            return error
        except Exception as error:  # the loop must outlive any bug: its futures are requests
            return MantaError(f"a batch failed: {error}")


def _prefix(sizes: Sequence[int]) -> int:
    """How many items fit a batch; at least one."""
    total = 0
    for i, size in enumerate(sizes[:BATCH_ITEMS_MAX]):
        total += size
        if total > BATCH_BYTES_MAX and i:
            return i
    return min(len(sizes), BATCH_ITEMS_MAX)
