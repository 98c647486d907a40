"""How everybody outside talks to the actors of a workspace.

A call to a shard is retried with the same commands for as long as a retry may help and the
deadline allows: refusals that certainly changed nothing (``NotReady``, ``Overloaded``,
``StoreUnavailable``) for every command, unknown outcomes only for commands with a key, which the
shard runs at most once. People are found by hashing: no lookup service stands between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

from manta.clock import Clock
from manta.command import Command
from manta.errors import (
    MantaError,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    RetryableError,
    StoreUnavailable,
)
from manta.ids import bucket_of_identity, bucket_of_subscriber, shard_of_bucket

DEADLINE_S = 30.0
FIRST_PAUSE_S = 0.05
PAUSE_MAX_S = 2.0
CALL_TIMEOUT_S = 30.0
_CHANGED_NOTHING = (NotReady, Overloaded, StoreUnavailable)


class Calls(Protocol):
    """The port to the actor system (``actors.runtime.Caller``)."""

    async def call(
        self, role: str, method: str, *arguments: Any, timeout_s: float = ...
    ) -> Any: ...

    def push(self, role: str, method: str, *arguments: Any) -> None: ...


def shard_role(shard: int) -> str:
    return f"shard-{shard:03d}"


def sender_role(number: int) -> str:
    return f"sender-{number:02d}"


class Retrying:
    """Jittered exponential pauses until a deadline."""

    def __init__(self, clock: Clock, random: Random, deadline_s: float) -> None:
        self._clock = clock
        self._random = random
        self._until = clock.monotonic() + deadline_s
        self._pause_s = FIRST_PAUSE_S

    async def pause(self) -> bool:
        """Wait; ``False`` when the deadline leaves no time for another try."""
        pause_s = self._pause_s * self._random.uniform(0.5, 1.5)
        if self._clock.monotonic() + pause_s > self._until:
            return False
        await asyncio.sleep(pause_s)
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
        return True


class Shards:
    """The shards of a workspace as one."""

    def __init__(
        self, calls: Calls, first_buckets: Sequence[int], clock: Clock, random: Random
    ) -> None:
        self._calls = calls
        self.first_buckets = list(first_buckets)
        self._clock = clock
        self._random = random

    @property
    def count(self) -> int:
        return len(self.first_buckets)

    def of_subscriber(self, subscriber_id: int) -> int:
        return shard_of_bucket(bucket_of_subscriber(subscriber_id), self.first_buckets)

    def of_identity(self, kind: str, value: str) -> int:
        return shard_of_bucket(bucket_of_identity(kind, value), self.first_buckets)

    async def execute_on(
        self, shard: int, commands: Sequence[Command], deadline_s: float = DEADLINE_S
    ) -> list[Any]:
        """The answer of each command, or the ``MantaError`` that only it got, as a value."""
        results: list[Any] = [None] * len(commands)
        waiting = list(range(len(commands)))
        retrying = Retrying(self._clock, self._random, deadline_s)
        while waiting:
            batch = [commands[i] for i in waiting]
            try:
                answers = await self._calls.call(
                    shard_role(shard), "execute", batch, timeout_s=CALL_TIMEOUT_S
                )
            except RetryableError as error:
                answers = [error] * len(batch)
            for i, answer in zip(waiting, answers, strict=True):
                results[i] = answer
            waiting = [i for i in waiting if _may_retry(results[i], commands[i])]
            if waiting and not await retrying.pause():
                break
        return results

    async def execute(self, shard: int, command: Command, deadline_s: float = DEADLINE_S) -> Any:
        """The answer of one command; its error is raised."""
        (answer,) = await self.execute_on(shard, [command], deadline_s)
        if isinstance(answer, MantaError):
            raise answer
        return answer

    async def execute_all(self, command: Command, deadline_s: float = DEADLINE_S) -> list[Any]:
        """One command on every shard; the first error is raised after all have answered."""
        answers = await asyncio.gather(
            *(self.execute(shard, command, deadline_s) for shard in range(self.count)),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    async def query(
        self,
        shard: int,
        name: str,
        arguments: dict[str, Any] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Any:
        """A named read on one shard, tried again while the shard is on its way."""
        retrying = Retrying(self._clock, self._random, deadline_s)
        while True:
            try:
                return await self._calls.call(
                    shard_role(shard), "query", name, arguments or {}, timeout_s=CALL_TIMEOUT_S
                )
            except RetryableError:
                if not await retrying.pause():
                    raise

    async def query_all(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> list[Any]:
        """A named read on every shard, in shard order."""
        return list(
            await asyncio.gather(
                *(self.query(s, name, arguments, deadline_s) for s in range(self.count))
            )
        )

    async def call_all(
        self, method: str, *arguments: Any, deadline_s: float = DEADLINE_S
    ) -> list[Any]:
        """A method of every shard's actor, in shard order, tried again while a shard is away."""
        actors = [
            Singleton(self._calls, shard_role(shard), self._clock, self._random)
            for shard in range(self.count)
        ]
        return list(
            await asyncio.gather(
                *(actor.call(method, *arguments, deadline_s=deadline_s) for actor in actors)
            )
        )

    async def call(
        self, shard: int, method: str, *arguments: Any, deadline_s: float = DEADLINE_S
    ) -> Any:
        """A method of one shard's actor."""
        actor = Singleton(self._calls, shard_role(shard), self._clock, self._random)
        return await actor.call(method, *arguments, deadline_s=deadline_s)

    async def status(self) -> list[dict[str, Any]]:
        """Each shard's status, or why it does not answer."""

        async def one(shard: int) -> dict[str, Any]:
            try:
                return dict(await self._calls.call(shard_role(shard), "status", timeout_s=5))
            except MantaError as error:
                return {"shard": shard, "ready": False, "reason": error.message}

        return list(await asyncio.gather(*(one(s) for s in range(self.count))))


def _may_retry(answer: Any, command: Command) -> bool:
    if isinstance(answer, _CHANGED_NOTHING):
        return True
    return isinstance(answer, OutcomeUnknown) and command.key is not None


class Singleton:
    """An actor of which a workspace has one: the Catalog, the Director, the Throttle and others."""

    def __init__(self, calls: Calls, role: str, clock: Clock, random: Random) -> None:
        self._calls = calls
        self._role = role
        self._clock = clock
        self._random = random

    async def call(
        self, method: str, *arguments: Any, deadline_s: float = DEADLINE_S, once: bool = False
    ) -> Any:
        """Call a method, tried again while the actor is on its way.

        ``once`` is for methods that may not run twice and take no key: an unknown outcome is then
        raised at once.
        """
        retrying = Retrying(self._clock, self._random, deadline_s)
        while True:
            try:
                return await self._calls.call(
                    self._role, method, *arguments, timeout_s=CALL_TIMEOUT_S
                )
            except RetryableError as error:
                if once and isinstance(error, OutcomeUnknown):
                    raise
                if not await retrying.pause():
                    raise

    def push(self, method: str, *arguments: Any) -> None:
        self._calls.push(self._role, method, *arguments)


class Handles:
    """Everything of one workspace that apps, jobs and commands may reach."""

    def __init__(
        self,
        workspace: str,
        calls: Calls,
        shards: Shards,
        clock: Clock,
        random: Random,
        senders: int,
    ) -> None:
        self.workspace = workspace
        self.shards = shards
        self.clock = clock
        self.catalog = Singleton(calls, "catalog", clock, random)
        self.director = Singleton(calls, "director", clock, random)
        self.throttle = Singleton(calls, "throttle", clock, random)
        self.reputation = Singleton(calls, "reputation", clock, random)
        self.resolver = Singleton(calls, "resolver", clock, random)
        self.courier = Singleton(calls, "courier", clock, random)
        self.senders = [Singleton(calls, sender_role(i), clock, random) for i in range(senders)]


async def find(
    workspace: str,
    calls: Calls,
    clock: Clock,
    random: Random,
    *,
    senders: int,
    deadline_s: float = DEADLINE_S,
) -> Handles:
    """The handles of a running workspace: the shard table comes from its Catalog."""
    catalog = Singleton(calls, "catalog", clock, random)
    first_buckets = await catalog.call("shard_table", deadline_s=deadline_s)
    shards = Shards(calls, first_buckets, clock, random)
    return Handles(workspace, calls, shards, clock, random, senders)
