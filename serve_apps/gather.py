"""Gathering: many small things from many requests become one command per shard.

One batch per shard is in flight, so its size follows the load by itself; and each waits for company
first: ``GATHER_S``, or as long as the batch before took, up to ``GATHER_MAX_S``. (Without that,
clients that ask again at once form two groups that follow each other, each with half the size and
the same fixed cost. And where batches take long, that cost is what they take long for.)

A batch has a key, so a retry after an unknown outcome stores it once. Each item, which may be
several rows of one request, gets a future that is resolved after the commit. The batch does not
depend on its requests: a client that leaves takes nothing with it. A full queue refuses at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from actors.handles import Shards
from manta.command import Command
from manta.errors import MantaError, Overloaded

GATHER_S = 0.010
GATHER_MAX_S = 0.030
BATCH_BYTES_MAX = 1 << 20
BATCH_ITEMS_MAX = 5_000  # rows
QUEUE_BYTES_MAX = 8 << 20
QUEUE_ITEMS_MAX = 20_000  # rows
DEADLINE_S = 15.0
Item = TypeVar("Item")

# What an item's future gives: its part of the command's answer, or the error that the command got.
Outcome = Any


class _Waiting(NamedTuple):
    """An item in the queue of its shard."""

    item: Any
    rows: int
    size_bytes: int
    future: asyncio.Future[Outcome]


class _Lane:
    """What waits for one shard."""

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []
        self.running: asyncio.Task[None] | None = None
        self.took_s = 0.0  # by the batch before


class Gatherer(Generic[Item]):
    """``build(items, key)`` makes the command of a batch; ``part(answer, first, rows)`` is what the
    item whose rows begin at ``first`` gets of the answer. ``after(answer, key)`` is awaited before
    anybody is answered."""

    def __init__(
        self,
        shards: Shards,
        build: Callable[[Sequence[Item], str], Command],
        producer: str,
        *,
        part: Callable[[Any, int, int], Outcome] = lambda answer, first, rows: answer,
        after: Callable[[Any, str], Awaitable[None]] | None = None,
        gather_s: float = GATHER_S,
    ) -> None:
        self._shards = shards
        self._build = build
        self._part = part
        self._after = after
        self._producer = producer  # unique to this incarnation: part of each batch's key
        self._gather_s = gather_s
        self._lanes = [_Lane() for _ in range(shards.count)]
        self._batches = 0
        self.queued_items = 0
        self.queued_bytes = 0

    def add(
        self, shard: int, item: Item, size_bytes: int, rows: int = 1
    ) -> asyncio.Future[Outcome]:
        """Take an item; its future is resolved when its batch is stored or has failed.

        Raises ``Overloaded`` when too much waits already.
        """
        if self.queued_items >= QUEUE_ITEMS_MAX or self.queued_bytes >= QUEUE_BYTES_MAX:
            raise Overloaded("more arrives than can be stored at present")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        lane = self._lanes[shard]
        lane.waiting.append(_Waiting(item, rows, size_bytes, future))
        self.queued_items += rows
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
        time_s = asyncio.get_running_loop().time
        while lane.waiting:
            await asyncio.sleep(max(self._gather_s, min(lane.took_s, GATHER_MAX_S)))
            count = _prefix(lane.waiting)
            batch, lane.waiting = lane.waiting[:count], lane.waiting[count:]
            sent_s = time_s()
            outcome = await self._send(shard, [each.item for each in batch])
            lane.took_s = time_s() - sent_s
            first = 0
            for _, rows, size_bytes, future in batch:
                if not future.done():
                    future.set_result(self._shared(outcome, first, rows))
                first += rows
                self.queued_bytes -= size_bytes
            self.queued_items -= first
        lane.running = None

    def _shared(self, outcome: Outcome, first: int, rows: int) -> Outcome:
        try:
            return outcome if isinstance(outcome, MantaError) else self._part(outcome, first, rows)
        except Exception as error:  # the same
            return MantaError(f"a batch's answer was not understood: {error}")

    async def _send(self, shard: int, items: Sequence[Item]) -> Outcome:
        self._batches += 1
        try:
            key = f"{self._producer}:{shard}:{self._batches}"
            answer = await self._shards.execute(shard, self._build(items, key), DEADLINE_S)
            if self._after is not None:
                await self._after(answer, key)
            return answer
        except MantaError as error:
            return error
        except Exception as error:  # the loop must outlive any bug: its futures are requests
            return MantaError(f"a batch failed: {error}")


def _prefix(waiting: Sequence[_Waiting]) -> int:
    """How many items fit a batch; at least one."""
    rows = size_bytes = 0
    for n, each in enumerate(waiting):
        rows += each.rows
        size_bytes += each.size_bytes
        if n and (rows > BATCH_ITEMS_MAX or size_bytes > BATCH_BYTES_MAX):
            return n
    return len(waiting)
