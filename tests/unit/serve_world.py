"""The actors of a workspace as plain objects in one event loop: real decisions, no Ray.

Apps under test call them through the same handles as in production.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from actors.catalog import Catalog
from actors.distributing import Distributor
from actors.handles import Handles, Shards
from actors.shard import ShardActor
from manta.clock import ManualClock
from manta.definitions import SCOPES
from manta.delivery import queries as delivery_queries
from manta.errors import NotReady
from manta.events import queries as event_queries
from manta.ids import even_ranges
from manta.ingestion import quarantine
from manta.people import queries as people_queries
from manta.privacy import queries as privacy_queries
from manta.rules import queries as rule_queries
from manta.segments import queries as segment_queries
from manta.store.documents import Documents
from manta.store.queries import Queries
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore
from manta.webhooks import queries as webhook_queries
from manta.webhooks.deriving import OutboxDeriver
from manta.webhooks.hooks import DeliveriesHook
from serve_apps.auth import Authenticator
from tests.faults import MemoryObjects
from tests.unit.serve_fakes import NOW

SHARDS = 2


class InProcess:
    """The port of ``actors.handles.Calls`` over objects."""

    def __init__(self) -> None:
        self.roles: dict[str, Any] = {}
        self.calls: list[tuple[str, str]] = []
        self.troubles: list[Exception] = []  # raised by the next calls, one each
        self.delivers = False  # what is pushed arrives
        self._tasks: set[asyncio.Future[Any]] = set()

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 30) -> Any:
        self.calls.append((role, method))
        if self.troubles:
            raise self.troubles.pop(0)
        if role not in self.roles:
            raise NotReady(f"no {role} here")
        return await getattr(self.roles[role], method)(*arguments)

    def push(self, role: str, method: str, *arguments: Any) -> None:
        self.calls.append((role, method))
        if self.delivers and role in self.roles:
            self._tasks.add(asyncio.ensure_future(getattr(self.roles[role], method)(*arguments)))


class House:
    """One workspace. ``webhooks``: shards know the Catalog's definitions and fill their outboxes,
    and what they push arrives."""

    def __init__(self, *, webhooks: bool = False) -> None:
        self.webhooks = webhooks
        self.clock = ManualClock(NOW)
        self.objects = MemoryObjects(self.clock)
        self.calls = InProcess()
        self.random = Random(7)
        shards = Shards(self.calls, even_ranges(SHARDS), self.clock, self.random)
        self.handles = Handles("default", self.calls, shards, self.clock, self.random, senders=1)
        self.authenticator = Authenticator(self.handles.catalog, "default", self.clock)

    async def start(self) -> None:
        documents = Documents(
            self.objects, "default/journal/catalog", "catalog", b"c" * 16, self.clock
        )
        distributor = Distributor(self.calls, self.clock, self.random) if self.webhooks else None
        self.calls.delivers = self.webhooks
        catalog = Catalog(
            documents, self._end, self.clock, "default", SHARDS, distributor, lambda: b"r" * 32
        )
        self.calls.roles["catalog"] = catalog
        await catalog.start()
        queries = Queries(
            people_queries.QUERIES,
            event_queries.QUERIES,
            rule_queries.QUERIES,
            segment_queries.QUERIES,
            quarantine.QUERIES,
            delivery_queries.QUERIES,
            webhook_queries.QUERIES,
            privacy_queries.QUERIES,
        )
        for n in range(SHARDS):

            def open_store(shard: int = n) -> ShardStore:
                nonce = bytes([shard]) * 16
                return ShardStore(
                    self.objects,
                    "default",
                    shard,
                    nonce,
                    self.clock,
                    Random(shard),
                    ShardSettings(domain={"privacy_key": b"p" * 32}),
                    hooks=(DeliveriesHook(self.clock),) if self.webhooks else (),
                    derivers=(OutboxDeriver(),) if self.webhooks else (),
                )

            actor = ShardActor(open_store, self.calls.push, self.clock, self._end, queries)
            self.calls.roles[f"shard-{n:03d}"] = actor
            await actor.start()

    async def stop(self) -> None:
        for role, actor in self.calls.roles.items():
            if role.startswith("shard-"):
                await actor.stop()

    async def key(self, *scopes: str) -> dict[str, str]:
        """The header of a new key; all scopes if none are named."""
        made = await self.handles.catalog.call("create_api_key", "test", list(scopes or SCOPES))
        return {"Authorization": f"Bearer {made['key']}"}

    def _end(self, reason: str) -> None:
        raise AssertionError(f"an actor would have ended: {reason}")


@asynccontextmanager
async def house(**options: bool) -> AsyncIterator[House]:
    built = House(**options)
    await built.start()
    try:
        yield built
    finally:
        await built.stop()
