"""Fakes for the apps: an actor system of plain objects, and a client for a plain ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import datetime
from random import Random
from typing import Any

import httpx

from actors.handles import Handles, Shards
from manta import definitions
from manta.clock import ManualClock
from manta.errors import MantaError
from manta.ids import even_ranges

NOW = datetime(2026, 3, 1, 12)


class FakeActors:
    """The port of ``actors.handles.Calls``: what each role answers is set by the test.

    ``answers[role, method]`` is a value, an error, or a function of the arguments. Every call is
    noted. ``stalled``, while set, holds all calls to shards back.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.answers: dict[tuple[str, str], Any] = {}
        self.pushes: list[tuple[str, str, tuple[Any, ...]]] = []
        self.executed: list[tuple[int, Any]] = []
        self.execute: Callable[[int, Any], Any] = lambda shard, command: None
        self.stalled: asyncio.Event | None = None
        self.batch_sizes: list[int] = []

    async def call(self, role: str, method: str, *arguments: Any, timeout_s: float = 30) -> Any:
        self.calls.append((role, method, arguments))
        if role.startswith("shard-") and method == "execute":
            return await self._execute(int(role[6:]), arguments[0])
        answer = self.answers.get((role, method))
        if callable(answer):
            answer = answer(*arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _execute(self, shard: int, commands: list[Any]) -> list[Any]:
        if self.stalled is not None:
            await self.stalled.wait()
        await asyncio.sleep(0)
        answers = []
        for command in commands:
            self.executed.append((shard, command))
            try:
                answers.append(self.execute(shard, command))
            except MantaError as error:
                answers.append(error)
        return answers

    def push(self, role: str, method: str, *arguments: Any) -> None:
        self.pushes.append((role, method, arguments))

    def commands(self, kind: type) -> list[Any]:
        return [command for _, command in self.executed if isinstance(command, kind)]


class FakeDocuments:
    """A Catalog's or Director's documents, and the reader that ``manta.definitions`` wants."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, dict[str, Any]]] = {}

    def get(self, collection: str, id: str) -> dict[str, Any] | None:
        return self.held.get(collection, {}).get(id)

    def list(self, collection: str) -> list[dict[str, Any]]:
        return list(self.held.get(collection, {}).values())

    def apply(self, defined: definitions.Defined) -> Any:
        for collection, id, document in defined.changes:
            if document is None:
                self.held.get(collection, {}).pop(id, None)
            else:
                self.held.setdefault(collection, {})[id] = document
        return defined.answer


def make_handles(actors: FakeActors, clock: ManualClock | None = None, shards: int = 2) -> Handles:
    clock = clock or ManualClock(NOW)
    ports = Shards(actors, even_ranges(shards), clock, Random(1))
    return Handles("default", actors, ports, clock, Random(1), senders=1)


def add_key(actors: FakeActors, catalog: FakeDocuments, *scopes: str) -> dict[str, str]:
    """An API key in the Catalog; returns the header that carries it."""
    answer = catalog.apply(
        definitions.create_api_key(
            catalog,
            "test",
            scopes,
            id="abc123",
            secret="s3cret",
            workspace="default",
            expires_at=None,
            now=NOW,
        )
    )
    actors.answers["catalog", "get"] = catalog.get
    actors.answers["catalog", "list"] = catalog.list
    return {"Authorization": f"Bearer {answer['key']}"}


@asynccontextmanager
async def client(app: Any, root_path: str = "", headers: dict[str, str] | None = None) -> Any:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path=root_path)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://manta.test", headers=headers
    ) as http:
        yield http
