"""Events on their way into their shards: those of many requests, one command per shard.

What one request has for one shard is one item of the gatherer, however many events it is, so that
a batch of a hundred costs two futures and not a hundred.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from actors.handles import Shards
from manta.command import Command, Repeated
from manta.errors import InvalidRequest, MantaError, NotFound
from manta.events.commands import RECORDED, REPEATED, UNKNOWN, RecordEvents
from manta.ingestion.commands import ORIGINALS, RecordReceived
from manta.people.identifying import forward
from serve_apps.gather import Gatherer

EVENT_OVERHEAD_BYTES = 96


class Incoming(NamedTuple):
    """A checked event of a person."""

    subscriber_id: int
    type: str
    id: str
    occurred_at: datetime | None
    item: str | None
    amount: float | None
    properties: str | None  # the text of a JSON object

    @property
    def size_bytes(self) -> int:
        return EVENT_OVERHEAD_BYTES + len(self.properties or "") + len(self.item or "")


class Original(NamedTuple):
    """The message from which events were made. ``row``: the place of the first of them among the
    events given with it; ``None``: there are none."""

    subscriber_id: int
    event_id: int
    occurred_at: datetime | None
    item: str  # the source
    properties: str
    row: int | None


class Outcome(NamedTuple):
    """What became of one event; ``error`` where it was not stored."""

    status: str
    error: MantaError | None = None


_STORED = Outcome(RECORDED)
_SEEN = Outcome(REPEATED)


class _Part(NamedTuple):
    """What one request has for one shard."""

    events: Sequence[Incoming]
    originals: Sequence[Original]


def record_events(events: Sequence[Incoming], key: str | None) -> RecordEvents:
    """The command of these events."""
    columns: Sequence[Sequence[Any]] = tuple(zip(*events, strict=True)) or ((),) * 7
    return RecordEvents(
        key,
        pa.table(
            {
                "subscriber_id": pa.array(columns[0], pa.int64()),
                "type": pa.array(columns[1], pa.string()),
                "id": pa.array(columns[2], pa.string()),
                "occurred_at": pa.array(columns[3], pa.timestamp("us")),
                "item": pa.array(columns[4], pa.string()),
                "amount": pa.array(columns[5], pa.float64()),
                "properties": pa.array(columns[6], pa.string()),
            }
        ),
    )


def _command(parts: Sequence[_Part], key: str) -> Command:
    events = list(chain.from_iterable(part.events for part in parts))
    if not any(part.originals for part in parts):
        return record_events(events, key)
    originals, first = [], 0
    for part in parts:
        for original in part.originals:
            row = original.row
            originals.append(original if row is None else original._replace(row=first + row))
        first += len(part.events)
    columns = list(zip(*originals, strict=True))
    table = pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, ORIGINALS, strict=True)],
        schema=ORIGINALS,
    )
    return RecordReceived(key, record_events(events, None).rows, table)


def _outcomes(answer: Any, first: int, rows: int) -> list[Outcome]:
    """Of one part's events. A batch that was committed before was stored, which is all that its
    producer wants to know."""
    outcomes = [_STORED] * rows
    if isinstance(answer, Repeated):
        return outcomes
    refused = answer.refused  # by row
    for row, status, reason in refused[bisect_left(refused, (first,)) :]:
        if row >= first + rows:
            break
        if status == REPEATED:
            outcomes[row - first] = _SEEN
        else:
            kind = NotFound if status == UNKNOWN else InvalidRequest
            outcomes[row - first] = Outcome("refused", kind(reason))
    return outcomes


class Recorder:
    """Records events in the shards of their people, answered after the commit."""

    def __init__(self, shards: Shards, producer: str) -> None:
        self._shards = shards
        self._gatherer: Gatherer[_Part] = Gatherer(
            shards, _command, f"events:{producer}", part=_outcomes, after=self._forward
        )

    async def record(
        self, events: Sequence[Incoming], originals: Sequence[Original] = ()
    ) -> list[Outcome]:
        """What became of each event. Raises nothing that concerns one event or one shard alone.

        ``originals`` speak of ``events`` by place. Where a shard that gets none but originals
        fails, no outcome could tell: its error is raised.
        """
        by_shard: dict[int, list[int]] = {}
        of = self._shards.of_subscriber
        for n, event in enumerate(events):
            by_shard.setdefault(of(event.subscriber_id), []).append(n)
        kept: dict[int, list[Original]] = {}
        places = {n: m for ns in by_shard.values() for m, n in enumerate(ns)} if originals else {}
        for original in originals:
            shard = of(original.subscriber_id)
            row = None if original.row is None else places[original.row]
            kept.setdefault(shard, []).append(original._replace(row=row))
        outcomes: list[Outcome] = [_STORED] * len(events)
        waits: list[tuple[int, asyncio.Future[Any]]] = []
        for shard in by_shard.keys() | kept.keys():
            part = _Part([events[n] for n in by_shard.get(shard, ())], kept.get(shard, ()))
            size = sum(event.size_bytes for event in part.events)
            size += sum(len(original.properties) for original in part.originals)
            try:
                waits.append((shard, self._gatherer.add(shard, part, size, len(part.events))))
            except MantaError as error:
                self._fail(outcomes, by_shard.get(shard), error)
        for shard, future in waits:
            answer = await future
            if isinstance(answer, MantaError):
                self._fail(outcomes, by_shard.get(shard), answer)
            else:
                for n, outcome in zip(by_shard.get(shard, ()), answer, strict=True):
                    outcomes[n] = outcome
        return outcomes

    async def _forward(self, answer: Any, key: str) -> None:
        """Copies for those whom merged people live on as in other shards."""
        copies = getattr(answer, "copies", ())
        if copies:
            await forward(self._shards, copies, key)

    def _fail(
        self, outcomes: list[Outcome], places: Sequence[int] | None, error: MantaError
    ) -> None:
        if not places:
            raise error
        for n in places:
            outcomes[n] = Outcome("refused", error)

    async def drain(self) -> None:
        await self._gatherer.drain()
