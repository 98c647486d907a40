"""Bringing reports to the shards that they concern, for all who get them: the inbox, webhooks, the
API.

A message's report goes to its person's shard. Where that ends in a suppression and the address
belongs to another shard (or its holder lives in a third), the suppression is brought there too. A
report about an address goes to the shard of the address first, then to its holder's. Whoever calls
answers its own caller after the last step; a crash in between is mended by the retry, since every
command answers a repetition with what stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from manta.command import Command
from manta.delivery.returns.commands import (
    RecordBounce,
    RecordBounceOf,
    RecordComplaint,
    RecordComplaintOf,
    Returned,
    Suppressed,
)
from manta.people.aliases import HOPS_MAX
from manta.people.consents import address_kind
from manta.people.identities import EMAIL, compared
from manta.people.suppressions import LiftSuppression, Suppress, SuppressionChanged

Report = RecordBounce | RecordComplaint | RecordBounceOf | RecordComplaintOf


class Shards(Protocol):
    """As much of ``actors.handles.Shards`` as this needs."""

    def of_subscriber(self, subscriber_id: int) -> int: ...

    def of_identity(self, kind: str, value: str) -> int: ...

    async def execute(self, shard: int, command: Command, deadline_s: float) -> Any: ...


async def report(shards: Shards, command: Report, deadline_s: float) -> Returned:
    """Record a bounce or a complaint wherever it concerns anybody."""
    if isinstance(command, RecordBounce | RecordComplaint):
        home = shards.of_subscriber(command.ref[0])
    else:
        home = shards.of_identity(EMAIL, compared(EMAIL, command.address))
    returned: Returned = await shards.execute(home, command, deadline_s)
    visited = {home}
    # The person may live elsewhere, and by a merge live on in yet another shard.
    for _ in range(HOPS_MAX + 1):
        if returned.person is None or shards.of_subscriber(returned.person) in visited:
            break
        home = shards.of_subscriber(returned.person)
        there: Returned = await shards.execute(home, command, deadline_s)
        visited.add(home)
        returned = Returned(
            returned.counted or there.counted,
            there.person or returned.person,
            there.suppressed or returned.suppressed,
        )
    if returned.suppressed is not None:
        await _spread(shards, returned.suppressed, command, visited, deadline_s)
    return returned


async def _spread(
    shards: Shards,
    suppressed: Suppressed,
    command: Report,
    visited: Iterable[int],
    deadline_s: float,
) -> None:
    """The suppression in the shards of the address and of its holder, where it is not yet."""
    visited, holder = set(visited), suppressed.holder
    evidence = getattr(command, "diagnostic", "") or None
    key = command.key and f"{command.key}:address"
    suppress = Suppress(
        key,
        EMAIL,
        suppressed.address,
        suppressed.stop.reason,
        command.source,
        evidence,
        suppressed.stop.expires_at,
    )
    owner = shards.of_identity(EMAIL, suppressed.address)
    if owner not in visited:
        changed: SuppressionChanged = await shards.execute(owner, suppress, deadline_s)
        visited.add(owner)
        holder = changed.subscriber_id
    if holder is not None and shards.of_subscriber(holder) not in visited:
        await shards.execute(shards.of_subscriber(holder), suppress, deadline_s)


async def on_address(
    shards: Shards, command: Suppress | LiftSuppression, deadline_s: float
) -> bool:
    """Suppress or lift in the shard of the address, and in that of the person who has it, if it is
    another. Answers whether anything changed."""
    kind = address_kind(command.channel)
    owner = shards.of_identity(kind, compared(kind, command.address))
    answer: SuppressionChanged = await shards.execute(owner, command, deadline_s)
    changed = answer.changed
    if answer.subscriber_id is not None:
        home = shards.of_subscriber(answer.subscriber_id)
        if home != owner:
            there: SuppressionChanged = await shards.execute(home, command, deadline_s)
            changed = changed or there.changed
    return changed
