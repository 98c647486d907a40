"""Erasing over all shards: whose ids, whose names, and the same command everywhere.

The person's own shards come first, so that wherever a trace of the request is, it is there too; a
run that broke off is finished by the next one for the same person, at the latest when the files are
rewritten (``actors.erasing``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from manta.command import Command
from manta.errors import Conflict, NotFound
from manta.people.consents import address_kind
from manta.people.identities import compared
from manta.privacy.commands import PEOPLE_MAX, Erase, Erased, KeepHashes, LiftErasure
from manta.privacy.names import Name

DEADLINE_S = 15.0
ROUNDS_MAX = 10  # each finds further names or merged people
HASHES_MAX = 5_000  # of one command


class Shards(Protocol):
    """As much of ``actors.handles.Shards`` as this needs."""

    @property
    def count(self) -> int: ...

    def of_subscriber(self, subscriber_id: int) -> int: ...

    async def execute(self, shard: int, command: Command, deadline_s: float) -> Any: ...

    async def execute_all(self, command: Command, deadline_s: float) -> list[Any]: ...

    async def query(
        self, shard: int, name: str, arguments: dict[str, Any], deadline_s: float
    ) -> Any: ...

    async def query_all(self, name: str, arguments: dict[str, Any], deadline_s: float) -> Any: ...


@dataclass(frozen=True)
class Scope:
    """One person: all ids that live on as them, all their names, and under which request they are
    being erased already, if they are. ``person`` is their name in receipts."""

    people: tuple[int, ...]
    names: tuple[Name, ...]
    request_id: str
    person: str


async def scope(shards: Shards, subscriber_id: int, deadline_s: float = DEADLINE_S) -> Scope:
    """Raises ``NotFound`` where no shard knows anything of the id."""
    people: set[int] = {subscriber_id}
    for _ in range(ROUNDS_MAX):
        found = await shards.query_all("privacy_scope", {"people": sorted(people)}, deadline_s)
        more = {int(id) for part in found for id in part["people"]}
        if more == people:
            break
        people = more
    if not any(part["found"] for part in found):
        raise NotFound("there is no such subscriber", path="subscriber_id")
    if len(people) > PEOPLE_MAX:
        raise Conflict(f"{len(people)} ids were merged into one", expected=f"at most {PEOPLE_MAX}")
    names = {Name(*name) for part in found for name in part["names"]}
    requests = sorted({request for part in found for request in part["requests"]})
    return Scope(
        tuple(sorted(people)),
        tuple(sorted(names)),
        requests[0] if requests else "",
        str(found[0]["person"]),
    )


async def erase(
    shards: Shards, subscriber_id: int, request_id: str, deadline_s: float = DEADLINE_S
) -> Scope:
    """The person is unreadable and unmailable everywhere when this returns.

    Where they are being erased already, that request stands (``Scope.request_id``).
    """
    found = await scope(shards, subscriber_id, deadline_s)
    request = found.request_id or request_id
    people, names = set(found.people), set(found.names)
    for _ in range(ROUNDS_MAX):
        command = Erase(None, request, tuple(sorted(people)), tuple(sorted(names)))
        for home in sorted({shards.of_subscriber(id) for id in people}):
            await shards.execute(home, command, deadline_s)
        answers: list[Erased] = await shards.execute_all(command, deadline_s)
        more_names = {Name(*name) for answer in answers for name in answer.names} - names
        more_people = {id for answer in answers for id in answer.people} - people
        if not more_names and not more_people:
            break
        names, people = names | more_names, people | more_people
    return Scope(tuple(sorted(people)), tuple(sorted(names)), request, found.person)


async def lift_erasure(
    shards: Shards, channel: str, address: str, deadline_s: float = DEADLINE_S
) -> bool:
    """To be called when the person has confirmed, by their own act, that they want mail to the
    address again (double opt-in). Whether it was an erased one."""
    kind = address_kind(channel)
    command = LiftErasure(None, channel, compared(kind, address))
    return any(await shards.execute_all(command, deadline_s))


async def keep_hashes(
    shards: Shards,
    rows: Iterable[tuple[str, str, datetime]],
    deadline_s: float = DEADLINE_S,
) -> int:
    """Bring hashes of erased addresses to all shards; how many the one with the fewest lacked."""
    unique = sorted(set(rows))
    new = 0
    for start in range(0, len(unique), HASHES_MAX):
        command = KeepHashes(None, tuple(unique[start : start + HASHES_MAX]))
        new += max(await shards.execute_all(command, deadline_s))
    return new


async def apply_erasures(
    shards: Shards,
    given: Sequence[tuple[str, str, datetime]],
    new_request: Any,
    deadline_s: float = DEADLINE_S,
) -> list[Scope]:
    """After a backup was brought back: erase again whoever was erased since it was made.

    ``given`` are hashes kept outside (``erased_hashes``), joined with those of all shards.
    ``new_request()`` makes a request's id. Answers those who were erased again.
    """
    known = await shards.query_all("erased_hashes", {}, deadline_s)
    await keep_hashes(shards, [*given, *(row for part in known for row in part)], deadline_s)
    done = []
    for returned in await shards.query_all("erased_returned", {}, deadline_s):
        for id in returned:
            try:
                done.append(await erase(shards, id, new_request(), deadline_s))
            except NotFound:
                continue  # gone with another of the list
    return done
