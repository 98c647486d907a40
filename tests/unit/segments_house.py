"""A shard with live segments, driven by hand: its store, notes and evaluator without an actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from random import Random
from typing import Any

import pyarrow as pa

from manta.clock import ManualClock
from manta.command import Change, Command, Op
from manta.people.commands import ApplyMemberships, RemoveMembers
from manta.people.definitions import SetDefinition
from manta.rules.loading import has_past
from manta.rules.sql import compile_sql
from manta.segments.live import LiveSegments, Round
from manta.segments.notes import Notes
from manta.segments.whole import flips, moves
from manta.store.objects import ObjectStore
from manta.store.settings import ShardSettings
from manta.store.shard import ShardStore, Watch
from tests.unit.store_shard import START, write

ATTRIBUTES = {"city": "string", "score": "number", "birthday": "date"}


def live_body(rule: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "type": "rule",
        "live": True,
        "rule": rule,
        "attributes": ATTRIBUTES,
    } | more


def define(id: int, rule: Mapping[str, Any] | None, version: int = 1, **more: Any) -> SetDefinition:
    body = None if rule is None else live_body(rule, **more)
    return SetDefinition(None, "segment", str(id), version, body)


class House:
    """``turn`` is what the evaluator does: rounds and whole evaluations until nothing waits."""

    def __init__(
        self,
        objects: ObjectStore,
        nonce: int = 1,
        zone: str = "UTC",
        hot_event_days: int = 36_500,
        start: datetime = START,
        *,
        shard: int = 0,
        clock: ManualClock | None = None,
        watch: Watch = lambda changes: None,
    ) -> None:
        self.clock = clock or ManualClock(start)
        self.notes = Notes(self.clock)
        self.zone = zone
        settings = ShardSettings(
            domain={"time_zone": zone, "privacy_key": b"k" * 32}, hot_event_days=hot_event_days
        )
        self.settings = settings
        self.store = ShardStore(
            objects,
            "default",
            shard,
            bytes([nonce]) * 16,
            self.clock,
            Random(nonce),
            settings,
            watch=lambda changes: (self.notes.add(changes), watch(changes)),
        )
        self.store.recover()
        self.live = LiveSegments(zone)
        self._pinned(self.live.begin)

    @property
    def now(self) -> datetime:
        return self.store.context().now

    def do(self, *commands: Command) -> list[Any]:
        outcomes = self.store.execute(commands)
        for outcome in outcomes:
            if outcome.failed:
                raise outcome.answer
        return [outcome.answer for outcome in outcomes]

    def write(self, *changes: Change) -> None:
        self.do(write(*changes))

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.store.database.rows(sql, params)

    def _pinned(self, work: Any) -> Any:
        reader = self.store.reader()
        try:
            reader.pin()
            return work(reader)
        finally:
            reader.close()

    def look(self) -> Round:
        """A round without its effect."""
        taken = self.notes.take()
        answer: Round = self._pinned(lambda reader: self.live.round(reader, taken, self.now))
        return answer

    def look_whole(self, number: int) -> pa.Table:
        """The moves of a segment evaluated whole, without their effect."""
        segment = self.live.index.segments[number]
        found = self._pinned(lambda reader: flips(reader, [segment], self.now, self.zone))
        self.live.flips.include(*found)
        wanted: pa.Table = self._pinned(lambda reader: moves(reader, segment, self.now, self.zone))
        return wanted

    def turn(self) -> int:
        """How many people were asked."""
        asked = 0
        while self.notes or self.live.waiting or self.live.whole or self._due():
            found = self.look()
            asked += len(found.asked)
            self.do(ApplyMemberships(None, found.moves, "rule"))
            segments, recorder = self.live.take_whole(100)
            wholes = [self.look_whole(segment.id) for segment in segments]
            for segment, whole in zip(segments, wholes, strict=True):
                self.do(ApplyMemberships(None, whole, "rule"))
                moved = whole["subscriber_id"].to_numpy()
                self.live.taken_whole(recorder, frozenset({segment.id}), moved)
            self.live.stop_recording(recorder)
            for id in self.live.removed:
                while self.do(RemoveMembers(None, id, "deleted"))[0].left:
                    pass
            self.live.removed.clear()
        return asked

    def _due(self) -> bool:
        earliest = self.live.flips.earliest()
        return earliest is not None and earliest <= self.now

    def members(self) -> dict[int, list[int]]:
        """Segment → its members, of segments that have some."""
        rows = self.rows(
            "SELECT s, list_sort(list(id)) FROM (SELECT subscriber_id AS id, unnest(segments) AS s"
            " FROM memberships) GROUP BY s ORDER BY s"
        )
        return dict(rows)

    def by_rules(self) -> dict[int, list[int]]:
        """The same as the rules say it, whole, by SQL."""
        found = {}
        for id, segment in sorted(self.live.index.segments.items()):
            asked = compile_sql(
                segment.rule, self.now, self.zone, has_past=has_past(self.store.database)
            )
            ids = sorted(id for (id,) in self.rows(asked.sql, *asked.params))
            if ids:
                found[id] = ids
        return found


def columns(*people: int) -> Change:
    """People with a value of every attribute, so that all have their columns."""
    rows = [
        {
            "subscriber_id": id,
            "email": f"p{id}@example.com",
            "created_at": START,
            "attr_city": "Oslo",
            "attr_score": 1.0,
            "attr_birthday": datetime(1990, 1, 1),
        }
        for id in people
    ]
    return Change("profiles", Op.UPSERT, pa.Table.from_pylist(rows))


def moves_of(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    return [(row["subscriber_id"], row["properties"]) for row in history]
