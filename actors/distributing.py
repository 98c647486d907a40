"""Telling every shard of the Catalog's definitions until each has acknowledged.

Owns nothing that counts: what is to be told stands in the Catalog's documents, and after a start
all of it is told again. Each shard has its own queue, so that one that is away keeps no others
waiting; a newer version of a definition takes the place of one that still waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from random import Random

from actors.handles import Calls, Shards
from manta.clock import Clock
from manta.errors import MantaError
from manta.people.definitions import SetDefinition

DEADLINE_S = 30.0
RETRY_S = 2.0
BATCH_MAX = 200
logger = logging.getLogger("manta.actors")
Waiting = dict[tuple[str, str], SetDefinition]


class Distributor:
    def __init__(self, calls: Calls, clock: Clock, random: Random) -> None:
        self._calls, self._clock, self._random = calls, clock, random
        self._waiting: list[Waiting] = []
        self._running: dict[int, asyncio.Task[None]] = {}

    def tell(self, first_buckets: list[int], definitions: Iterable[SetDefinition]) -> None:
        """Have every shard told of these; returns at once."""
        shards = Shards(self._calls, first_buckets, self._clock, self._random)
        self._waiting += [{} for _ in range(shards.count - len(self._waiting))]
        news = list(definitions)
        for shard, waiting in enumerate(self._waiting):
            waiting |= {(each.kind, each.id): each for each in news}
            if waiting and shard not in self._running:
                self._running[shard] = asyncio.ensure_future(self._run(shards, shard, waiting))

    async def told(self) -> None:
        """Wait until every shard knows everything."""
        while self._running:
            await asyncio.gather(*self._running.values())

    async def _run(self, shards: Shards, shard: int, waiting: Waiting) -> None:
        try:
            while waiting:
                batch = list(waiting.values())[:BATCH_MAX]
                answers = await shards.execute_on(shard, batch, DEADLINE_S)
                failed = None
                for command, answer in zip(batch, answers, strict=True):
                    if isinstance(answer, MantaError):
                        failed = answer
                    elif waiting.get((command.kind, command.id)) is command:
                        del waiting[command.kind, command.id]
                if failed is not None:
                    logger.warning("shard %d does not know all definitions: %s", shard, failed)
                    await asyncio.sleep(RETRY_S)
        finally:
            self._running.pop(shard, None)
