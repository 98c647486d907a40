"""Commands about people over several shards: many in one call, and after them where they live now.

A person who was merged lives on elsewhere. A command that meets only the alias raises ``NotFound``
with ``moved_to``; ``execute_for`` goes there. What a shard could not copy because it concerns
another comes as ``Copies``; ``bring`` brings them. Neither follows more than ``HOPS_MAX`` merges.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from manta.command import Command
from manta.errors import MantaError, NotFound
from manta.events.copies import Copies, CopyEvents
from manta.people.aliases import HOPS_MAX

DEADLINE_S = 15.0
IDS_MAX = 1_000  # of one question


class Homes(Protocol):
    """As much of ``actors.handles.Shards`` as it takes to reach one person."""

    def of_subscriber(self, subscriber_id: int) -> int: ...

    async def execute(self, shard: int, command: Command, deadline_s: float) -> Any: ...


class Shards(Homes, Protocol):
    """As much of it as this needs."""

    def of_identity(self, kind: str, value: str) -> int: ...

    async def execute_on(
        self, shard: int, commands: Sequence[Command], deadline_s: float
    ) -> list[Any]: ...

    async def query(
        self, shard: int, name: str, arguments: dict[str, Any], deadline_s: float
    ) -> Any: ...


async def run_each(
    shards: Shards, calls: Sequence[tuple[int, Command]], deadline_s: float = DEADLINE_S
) -> list[Any]:
    """Each command in its shard, all of a shard in one call: answers in order, an error as a
    value."""
    places: dict[int, list[int]] = defaultdict(list)
    for n, (shard, _) in enumerate(calls):
        places[shard].append(n)
    answers: list[Any] = [None] * len(calls)

    async def one(shard: int) -> None:
        commands = [calls[n][1] for n in places[shard]]
        for n, answer in zip(
            places[shard], await shards.execute_on(shard, commands, deadline_s), strict=True
        ):
            answers[n] = answer

    await asyncio.gather(*(one(shard) for shard in places))
    return answers


async def living(
    shards: Shards, ids: Iterable[int], deadline_s: float = DEADLINE_S
) -> dict[int, int]:
    """Who each of these is now, through all merges."""
    now = {id: id for id in ids}
    asking = set(now)
    for _ in range(HOPS_MAX + 1):
        if not asking:
            break
        by_shard: dict[int, list[int]] = defaultdict(list)
        for id in sorted(asking):
            by_shard[shards.of_subscriber(id)].append(id)
        parts = [
            (shard, part[at : at + IDS_MAX])
            for shard, part in by_shard.items()
            for at in range(0, len(part), IDS_MAX)
        ]
        answers = await asyncio.gather(
            *(
                shards.query(shard, "living", {"subscriber_ids": part}, deadline_s)
                for shard, part in parts
            )
        )
        step: dict[int, int] = {}
        for (_, part), answer in zip(parts, answers, strict=True):
            step |= dict(zip(part, answer, strict=True))
        asking = {
            new
            for old, new in step.items()
            if new != old and shards.of_subscriber(new) != shards.of_subscriber(old)
        }
        now = {id: step.get(last, last) for id, last in now.items()}
    return now


async def execute_for(
    shards: Homes,
    subscriber_id: int,
    command: Callable[[int], Command],
    deadline_s: float = DEADLINE_S,
) -> Any:
    """The answer of a command about one person, made for the id that they have now.

    Raises ``NotFound`` where nobody has the id, and what the command raises.
    """
    for _ in range(HOPS_MAX + 1):
        shard = shards.of_subscriber(subscriber_id)
        try:
            return await shards.execute(shard, command(subscriber_id), deadline_s)
        except NotFound as error:
            moved_to = error.details.get("moved_to")
            if moved_to is None:
                raise
            subscriber_id = int(moved_to)
    raise NotFound("no person has this id", path="subscriber_id")


async def bring(
    shards: Shards, copies: Sequence[Copies], key: str | None, deadline_s: float = DEADLINE_S
) -> None:
    """Bring events to those whom their people live on as. ``key`` is of the command that answered
    them. Raises what a shard raises: the whole may be repeated."""
    for hop in range(HOPS_MAX + 1):
        if not copies:
            return
        calls = [
            (
                shards.of_subscriber(each.to_id),
                CopyEvents(key and f"{key}:copies:{hop}:{n}", each),
            )
            for n, each in enumerate(copies)
        ]
        answers = await run_each(shards, calls, deadline_s)
        for answer in answers:
            if isinstance(answer, MantaError):
                raise answer
        copies = [each for answer in answers for each in answer]
