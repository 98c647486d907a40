"""What a shard does by itself for webhooks: it wakes the courier, and keeps the outbox in bounds.

``DeliveriesHook`` looks at the outbox after a commit that touched it, and at the next instant at
which something is due. A push that is lost is sent again while there is due work. Nothing here
counts: after a recovery it looks anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from manta.clock import Clock
from manta.command import Command, Context, Database, Push
from manta.people.definitions import ENDPOINT, definitions
from manta.webhooks.outbox import KEPT, CloseEndpoint, TrimOutbox, is_crowded

COURIER = "courier"
REPEAT = timedelta(seconds=30)
TRIM_GAP = timedelta(hours=1)  # what is settled lives so much longer at most
MIN_GAP_S, MAX_GAP_S, COST_SHARE = 0.05, 1.0, 0.01


class HookResult(NamedTuple):
    """See ``manta.store.shard.HookResult``."""

    pushes: tuple[Push, ...] = ()
    commands: tuple[Command, ...] = ()
    next_wake: datetime | None = None


class _Queue(NamedTuple):
    endpoint_id: int
    waiting: int
    due: int
    next_due_at: datetime | None
    head_due_at: datetime | None  # of the first in order


class DeliveriesHook:
    """One shard's hook. Called in the writer's thread; not shared."""

    tables = frozenset({"outbox", "definitions"})

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cost_s = 0.0

    @property
    def min_gap_s(self) -> float:
        """The time between looks: longer where a look costs more."""
        return min(max(self._cost_s / COST_SHARE, MIN_GAP_S), MAX_GAP_S)

    def after_commit(self, database: Database, context: Context) -> HookResult:
        began_s = self._clock.monotonic()
        queues = _queues(database, context.now)
        ((settled, oldest),) = database.rows(
            "SELECT count(*), min(changed_at) FROM outbox WHERE due_at IS NULL"
        )
        known = {int(each.id): each.body for each in definitions(database, ENDPOINT)}
        due, wakes = _due(queues, known, context.now)
        closed = {queue.endpoint_id for queue in queues} | _orphans(database, settled, known)
        closed -= {id for id, endpoint in known.items() if endpoint["enabled"]}
        commands: list[Command] = [CloseEndpoint(id) for id in sorted(closed)]
        waiting = sum(queue.waiting for queue in queues)
        expires = None if oldest is None else oldest + KEPT
        is_old = expires is not None and expires < context.now
        if is_old or is_crowded(database, waiting, settled):
            commands.append(TrimOutbox())
        if expires is not None:
            wakes.append(max(expires, context.now) + TRIM_GAP)
        if due:
            wakes.append(context.now + REPEAT)
        pushes = (Push(COURIER, "deliveries", (context.shard, due)),) if due else ()
        self._cost_s = self._clock.monotonic() - began_s
        return HookResult(pushes, tuple(commands), min(wakes, default=None))


def due(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """(endpoint, version of its document) of all that has due work, as a read."""
    known = {int(each.id): each.body for each in definitions(database, ENDPOINT)}
    return _due(_queues(database, context.now), known, context.now)[0]


def _queues(database: Database, now: datetime) -> list[_Queue]:
    rows = database.rows(
        "SELECT endpoint_id, count(*), count(*) FILTER (due_at <= ?),"
        " min(due_at) FILTER (due_at > ?), arg_min(due_at, sequence)"
        " FROM outbox WHERE due_at IS NOT NULL GROUP BY 1 ORDER BY 1",
        [now, now],
    )
    return [_Queue(*row) for row in rows]


def _due(
    queues: list[_Queue], known: Mapping[int, Mapping[str, Any]], now: datetime
) -> tuple[list[tuple[int, int]], list[datetime]]:
    """Who has due work, and when the others will."""
    found: list[tuple[int, int]] = []
    wakes: list[datetime] = []
    for queue in queues:
        endpoint = known.get(queue.endpoint_id)
        if endpoint is None or not endpoint["enabled"]:
            continue
        is_due, following = queue.due > 0, queue.next_due_at
        if endpoint["ordered"] and queue.head_due_at is not None:
            is_due, following = queue.head_due_at <= now, queue.head_due_at
        if is_due:
            found.append((queue.endpoint_id, endpoint["version"]))
        if following is not None and following > now:
            wakes.append(following)
    return found, wakes


def _orphans(database: Database, settled: int, known: Mapping[int, Any]) -> set[int]:
    """Endpoints that are gone and of which settled rows are left."""
    if not settled:
        return set()
    found = database.rows("SELECT DISTINCT endpoint_id FROM outbox")
    return {id for (id,) in found if id not in known}
