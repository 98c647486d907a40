"""A small world for the test of agreement: two shards on files, and all that can happen to people.

Everything goes through the commands and drivers that the doors use, two shards apart; the clock is
moved by hand, and a shard may end at any time and begin anew on its files. Beside the shards a
``Log`` keeps every event that was ever committed, so that a plain reading needs neither their
memory nor the lake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from manta.clock import ManualClock
from manta.command import Change, Command
from manta.errors import Conflict, MantaError, NotFound, OutcomeUnknown
from manta.events.commands import RecordEvents, TrackHits
from manta.ids import bucket_of_subscriber, even_ranges, shard_of_bucket
from manta.people import queries
from manta.people.commands import (
    EditList,
    LiftSuppression,
    SetConsent,
    Snapshot,
    Suppress,
    Unsubscribe,
)
from manta.people.definitions import SetDefinition
from manta.people.identifying import execute_for, finish, forward, identify, living, merge
from manta.people.identifying import undo_merge as undo
from manta.people.identities import bucket_of
from manta.privacy import erasing
from manta.privacy import queries as privacy_queries
from manta.schema import HISTORY_EVENTS
from manta.store.objects import FileObjects
from manta.traffic.reclassify import COLUMNS as CORRECTIONS
from manta.traffic.reclassify import CorrectTraffic
from tests.unit import rules_draws as drawn
from tests.unit.plain_rules import PlainPerson, plain_people
from tests.unit.rules_samples import dates
from tests.unit.segments_house import House
from tests.unit.store_shard import flush, upsert, write

START = datetime(2026, 3, 27, 20)
ZONES = ["UTC", "Asia/Kolkata", "Europe/Oslo", "America/Los_Angeles"]
LIST, SNAPSHOT = 1, 2  # the segments that `member` of the drawn rules asks for
EMAILS = [*(f"p{n}@x.example" for n in range(7)), "Q@x.example", "b@ås.example"]
TYPES = drawn.ATTRIBUTES
HOT_EVENT_DAYS = 400
OLD = timedelta(days=300)  # what is older may not come again with the same id
BROUGHT = -1  # the merge of events that have no copy
QUERIES = queries.QUERIES | privacy_queries.QUERIES


class Log:
    """Every event of people that a shard has ever committed, in the order of commits."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.table == "events":
                self.rows += [
                    row for row in change.rows.to_pylist() if row["type"] not in HISTORY_EVENTS
                ]


class World:
    """The port that drivers of people use, over two shards. ``dies_at`` makes the n-th call from
    now raise."""

    count = 2

    def __init__(self, root: Path, random: Random) -> None:
        self.random, self.root = random, root
        self.objects = FileObjects(root)
        self.clock = ManualClock(START)
        self.zone = random.choice(ZONES)
        self.first_buckets = even_ranges(self.count)
        self.logs = [Log() for _ in range(self.count)]
        self._nonce = 0
        self.houses = [self._house(shard) for shard in range(self.count)]
        self.dies_at: int | None = None
        self.ids: list[int] = []  # everybody there ever was
        self.erased: set[int] = set()
        self.sent_ids: list[tuple[int, str, datetime]] = []
        self.rules: dict[int, dict[str, Any]] = {}  # live segments
        self.versions: dict[int, int] = {}
        self.told: list[str] = []  # what happened, for whoever reads a failure

    def _house(self, shard: int) -> House:
        self._nonce += 1
        return House(
            self.objects,
            self._nonce,
            self.zone,
            shard=shard,
            clock=self.clock,
            hot_event_days=HOT_EVENT_DAYS,
            watch=self.logs[shard].add,
        )

    @property
    def now(self) -> datetime:
        return self.clock.now()

    # -- the port --------------------------------------------------------------------------------

    def of_subscriber(self, subscriber_id: int) -> int:
        return shard_of_bucket(bucket_of_subscriber(subscriber_id), self.first_buckets)

    def of_identity(self, kind: str, value: str) -> int:
        return shard_of_bucket(bucket_of(kind, value), self.first_buckets)

    async def execute(self, shard: int, command: Command, deadline_s: float) -> Any:
        (answer,) = await self.execute_on(shard, [command], deadline_s)
        if isinstance(answer, MantaError):
            raise answer
        return answer

    async def execute_on(
        self, shard: int, commands: Sequence[Command], deadline_s: float
    ) -> list[Any]:
        self._call()
        outcomes = self.houses[shard].store.execute(commands)
        for outcome in outcomes:
            if outcome.failed and not isinstance(outcome.answer, NotFound | Conflict):
                raise outcome.answer
        return [outcome.answer for outcome in outcomes]

    async def execute_all(self, command: Command, deadline_s: float) -> list[Any]:
        return [await self.execute(shard, command, deadline_s) for shard in range(self.count)]

    async def query(
        self, shard: int, name: str, arguments: dict[str, Any], deadline_s: float
    ) -> Any:
        self._call()
        store = self.houses[shard].store
        return QUERIES[name](store.database, store.context(), arguments)

    async def query_all(self, name: str, arguments: dict[str, Any], deadline_s: float) -> Any:
        return [await self.query(n, name, arguments, deadline_s) for n in range(self.count)]

    def _call(self) -> None:
        if self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                self.dies_at = None
                raise OutcomeUnknown("the driver dies here")

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    def do(self, shard: int, command: Command) -> Any:
        return self.run(self.execute(shard, command, 1.0))

    def tell(self, command: Command) -> None:
        self.run(self.execute_all(command, 1.0))

    def for_person(self, id: int, command: Callable[[int], Command]) -> Any:
        try:
            return self.run(execute_for(self, id, command))
        except NotFound:
            now = self.run(living(self, [id]))[id]
            if now in self.living():
                raise

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        return [row for house in self.houses for row in house.rows(sql, *params)]

    # -- what is ---------------------------------------------------------------------------------

    def living(self) -> list[int]:
        return sorted(id for (id,) in self.rows("SELECT subscriber_id FROM profiles"))

    def merged(self) -> dict[int, int]:
        found = "SELECT from_id, to_id FROM aliases WHERE state <> 'undone'"
        return dict(self.rows(found))

    def events(self, shard: int) -> list[dict[str, Any]]:
        """All that may be seen, as the logs have it, with what was found out later."""
        visible = [self._visible(one) for one in range(self.count)]
        found = visible[shard]
        for to_id in {to_id for _, to_id, _ in self._adopted(shard)}:
            found = found + self._brought(to_id, visible)
        return found

    def _visible(self, shard: int) -> list[dict[str, Any]]:
        house = self.houses[shard]
        undone = {id for (id,) in house.rows("SELECT merge_id FROM aliases WHERE state = 'undone'")}
        erased = {id for (id,) in house.rows("SELECT subscriber_id FROM erasures")}
        corrected = {
            (id, event): human
            for id, event, human in house.rows(
                "SELECT subscriber_id, event_id, human FROM traffic_corrections"
            )
        }
        found = []
        for row in self.logs[shard].rows:
            if row["subscriber_id"] in erased or row.get("merge_id") in undone - {None}:
                continue
            human = corrected.get((row["subscriber_id"], row["event_id"]), row.get("human"))
            found.append(_EMPTY | row | {"human": human})
        return found

    def _adopted(self, shard: int) -> list[tuple[int, int, int]]:
        """The merges into people of this shard: from, to, merge."""
        found = self.houses[shard].rows(
            "SELECT from_id, to_id, merge_id FROM aliases WHERE state <> 'undone'"
            " AND json_extract_string(kept, '$.to.step') = 'adopted'"
        )
        return [row for row in found if self.of_subscriber(row[1]) == shard]

    def _brought(self, id: int, visible: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What people who were merged into this one did so long ago that it had left memory: sums
        of it went over, no copies."""
        found: list[dict[str, Any]] = []
        shard = self.of_subscriber(id)
        for from_id, to_id, merge_id in self._adopted(shard):
            if to_id != id:
                continue
            home = self.of_subscriber(from_id)
            bounds = self.houses[home].rows(
                "SELECT kept_since FROM retention WHERE name = 'events'"
            )
            bound = bounds[0][0] if bounds else datetime.min
            copied = {row["event_id"] for row in visible[shard] if row["merge_id"] == merge_id}
            theirs = [row for row in visible[home] if row["subscriber_id"] == from_id]
            old = [row for row in theirs if row["occurred_at"] < bound]
            found += [
                row | {"subscriber_id": id, "merge_id": BROUGHT}
                for row in [*old, *self._brought(from_id, visible)]
                if row["event_id"] not in copied
            ]
        return found

    def plain(self, shard: int) -> dict[int, PlainPerson]:
        """Everybody of the shard, by its tables and the log."""
        database = self.houses[shard].store.database

        def table(sql: str) -> pa.Table:
            if sql.endswith(" events"):
                return pa.Table.from_pylist(self.events(shard) or [{"subscriber_id": 0}])
            return database.table(sql)

        return plain_people(table)

    def state(self, leave_out: Sequence[int] = ()) -> dict[int, dict[str, Any]]:
        """All that is known of everybody but these, apart from the times of updates."""
        found: dict[int, dict[str, Any]] = {}
        for house in self.houses:
            for table in _OF_PEOPLE:
                for row in house.store.database.table(f"SELECT * FROM {table}").to_pylist():
                    if row["subscriber_id"] in leave_out:
                        continue
                    said = {k: v for k, v in row.items() if v is not None and k != "updated_at"}
                    found.setdefault(row["subscriber_id"], {}).setdefault(table, []).append(
                        repr(sorted(said.items()))
                    )
        return {id: {t: sorted(rows) for t, rows in sorted(of.items())} for id, of in found.items()}

    def turn(self) -> None:
        for house in self.houses:
            house.turn()

    # -- time and machines -----------------------------------------------------------------------

    def pass_time(self, length: timedelta) -> None:
        self.clock.advance(max(0.0, length.total_seconds()))
        for house in self.houses:
            while house.store.hooks_due():
                house.do(*house.store.run_hooks().commands)

    def move_clock(self) -> None:
        random = self.random
        kind = random.randrange(12)
        if kind < 5:
            earliest = [at for one in self.houses if (at := one.live.flips.earliest())]
            if earliest:
                tick = random.choice([-1, 0, 0, 1]) * drawn.TICK
                return self.pass_time(min(earliest) - self.now + tick)
        if kind < 8:
            minutes = random.choice([0, 0, 1, 4, 30, 60, 90, 600])
            return self.pass_time(timedelta(minutes=minutes, microseconds=random.randint(1, 3)))
        if kind < 9:
            zone = ZoneInfo(random.choice([self.zone, "Europe/Oslo", "America/Los_Angeles"]))
            local = self.now.replace(tzinfo=UTC).astimezone(zone)
            midnight = (local + timedelta(days=1)).replace(hour=0, minute=0, second=0)
            there = midnight.replace(microsecond=0).astimezone(UTC).replace(tzinfo=None)
            tick = random.choice([-1, 0, 1]) * drawn.TICK
            return self.pass_time(there - self.now + tick)
        self.pass_time(timedelta(days=random.choice([1, 1, 2, 7, 30, 30, 90, 364])))

    def crash(self) -> None:
        """A shard ends, with whatever its evaluator had not looked at; another begins."""
        shard = self.random.randrange(self.count)
        self.houses[shard].store.close()
        self.houses[shard] = self._house(shard)

    def flush(self) -> None:
        for house in self.houses:
            flush(house.store)

    # -- segments --------------------------------------------------------------------------------

    def define(self, id: int, body: Mapping[str, Any] | None) -> None:
        self.versions[id] = self.versions.get(id, 0) + 1
        self.tell(SetDefinition(None, "segment", str(id), self.versions[id], body))

    def define_rule(self, id: int, rule: dict[str, Any] | None) -> None:
        if rule is None:
            self.rules.pop(id, None)
            return self.define(id, None)
        self.rules[id] = rule
        attributes = {name: str(kind) for name, kind in TYPES.items()}
        body = {"name": "s", "type": "rule", "live": True, "rule": rule, "attributes": attributes}
        self.define(id, body)

    def define_lists(self) -> None:
        for id, kind in ((LIST, "list"), (SNAPSHOT, "snapshot")):
            body = {"name": kind, "type": kind, "live": False, "rule": None, "attributes": {}}
            self.define(id, body)

    # -- people ----------------------------------------------------------------------------------

    def somebody(self) -> int | None:
        """Mostly somebody who lives, sometimes a merged id."""
        alive = self.living()
        pool = alive if self.random.random() < 0.8 or not self.ids else self.ids
        return self.random.choice(pool) if pool else None

    def change_person(self) -> None:
        random = self.random
        identities: dict[str, str] = {}
        kind = random.randrange(6)
        if kind != 4:
            identities["email"] = random.choice(EMAILS)
        if kind in (3, 4, 5):
            identities["anonymous_id"] = f"a{random.randrange(5)}"
        if kind == 2:
            identities["external_id"] = f"x{random.randrange(4)}"
        traits: dict[str, Any] = {
            "time_zone": random.choice([z for z in drawn.ZONES if z]),
            "attr_city": random.choice([text for text in drawn.TEXTS if "\0" not in text]),
            "attr_score": random.choice(drawn.NUMBERS),
            "attr_vip": random.choice([True, False]),
            "attr_birthday": dates().draw(random),
            "attr_tags": random.sample(["Oslo", "straße", "a'b", "%", ""], random.randint(0, 3)),
        }
        names = random.sample(sorted(traits), random.choice([0, 1, 1, 2, 4]))
        given = {name: traits[name] for name in names}
        found = self.run(identify(self, identities, source="test", traits=given, types=TYPES))
        if found.subscriber_id not in self.ids:
            self.ids.append(found.subscriber_id)

    def consent(self) -> None:
        id, random = self.somebody(), self.random
        if id is None:
            return
        topic = random.choice(["news", "offers"])
        if random.random() < 0.2:
            which = random.choice([topic, None])
            self.for_person(id, lambda id: Unsubscribe(None, id, None, which, "test"))
            return
        status = random.choice(["subscribed", "unsubscribed", "pending", "pending"])
        lasts = random.choice([None, timedelta(minutes=30), timedelta(days=1)])
        until = self.now + lasts if lasts and status == "pending" else None
        self.for_person(
            id, lambda id: SetConsent(None, id, "email", topic, status, "test", None, until)
        )

    def suppression(self) -> None:
        """In the address's shard, and in that of whoever has it."""
        random = self.random
        address = random.choice(EMAILS).lower()
        if random.random() < 0.35:
            command: Command = LiftSuppression(None, "email", address, "test")
        else:
            lasts = random.choice([None, timedelta(hours=1), timedelta(days=3)])
            reason = random.choice(["complaint", "hard_bounce", "manual"])
            until = self.now + lasts if lasts else None
            command = Suppress(None, "email", address, reason, "test", "", until)
        first = self.of_identity("email", address)
        holder = self.do(first, command).subscriber_id
        if holder is not None:
            holder = self.run(living(self, [holder]))[holder]
            for (id,) in self.rows(
                "SELECT subscriber_id FROM profiles WHERE lower(email) = ?", address
            ):
                if self.of_subscriber(id) != first:
                    self.do(self.of_subscriber(id), command)

    def edit_list(self) -> None:
        alive, random = self.living(), self.random
        if random.random() < 0.2:
            rule = {"attribute": {"name": "score", "operator": "at_least", "value": 0.2}}
            self.tell(Snapshot(None, SNAPSHOT, rule, {"score": "number"}, "test"))
        for house in self.houses:
            some = [id for id in alive if random.random() < 0.3]
            add = pa.array(some, pa.int64())
            remove = pa.array([id for id in alive if random.random() < 0.2], pa.int64())
            house.do(EditList(None, LIST, add, remove, "test"))

    def predict(self) -> None:
        for id in self.living():
            if self.random.random() < 0.4:
                name = self.random.choice(drawn.PREDICTIONS)
                value = self.random.choice([*drawn.NUMBERS, None])
                row = {"subscriber_id": id, "name": name, "value": value, "changed_at": self.now}
                self.do(self.of_subscriber(id), write(upsert("predictions", row)))

    # -- events ----------------------------------------------------------------------------------

    def _instant(self) -> datetime:
        random = self.random
        at = self.now - random.choice([timedelta(0), *drawn.SHIFTS, timedelta(days=500)])
        at += random.choice([timedelta(0), timedelta(0), timedelta(minutes=3)])
        return at + random.randint(-1, 1) * drawn.TICK

    def happen(self) -> None:
        id, random = self.somebody(), self.random
        if id is None:
            return
        at, rows = self._instant(), []
        for _ in range(random.choice([1, 1, 2, 3])):
            type_ = random.choice([*drawn.TYPES, *drawn.TYPES, "sent", "opened", "clicked"])
            is_message = type_ not in drawn.TYPES
            known = [one for one in self.sent_ids if one[0] == id and self.now - one[2] < OLD]
            name = f"e{len(self.sent_ids)}"
            if known and random.random() < 0.15:
                name = random.choice(known)[1]
            self.sent_ids.append((id, name, at))
            item = random.choice(["marketing", "transactional", "test"] if is_message else _ITEMS)
            rows.append(
                {
                    "subscriber_id": id,
                    "type": type_,
                    "id": name,
                    "occurred_at": at,
                    "campaign_id": random.choice([None, 1, 2]),
                    "message_key": random.choice(drawn.KEYS) if is_message else None,
                    "item": item,
                    "amount": random.choice([None, *drawn.NUMBERS]),
                    "properties": random.choice([None, *_PROPERTIES]),
                }
            )
            at += random.choice(drawn.SHIFTS[:5]) + random.randint(-1, 1) * drawn.TICK
        command = RecordEvents(None, pa.Table.from_pylist(rows), of_messages=True)
        answer = self.do(self.of_subscriber(id), command)
        self.run(forward(self, answer.copies, None))

    def hit(self) -> None:
        """Opens and clicks of links, by people and machines."""
        id, random = self.somebody(), self.random
        if id is None:
            return
        rows = [
            {
                "subscriber_id": id,
                "message_key": random.choice([1, 2, 3]),
                "type": random.choice(["opened", "clicked"]),
                "event_id": random.getrandbits(62),
                "occurred_at": self._instant(),
                "campaign_id": 1,
                "human": random.choice([None, 0.0, 0.3, 0.5, 0.9]),
            }
            for _ in range(random.choice([1, 2]))
        ]
        answer = self.do(self.of_subscriber(id), TrackHits(None, pa.Table.from_pylist(rows)))
        self.run(forward(self, answer.copies, None))

    def correct(self) -> None:
        for shard, house in enumerate(self.houses):
            hits = house.rows(
                "SELECT subscriber_id, event_id, human FROM events"
                " WHERE type IN ('opened', 'clicked') ORDER BY ALL"
            )
            for id, event, was in self.random.sample(hits, min(2, len(hits))):
                row = {"subscriber_id": id, "event_id": event, "was": was, "cause": "test"}
                row["human"] = 0.49 if was is None or was >= 0.5 else 0.5
                table = pa.Table.from_pylist([row], schema=CORRECTIONS)
                self.do(shard, CorrectTraffic(None, table))

    # -- merges and erasure ----------------------------------------------------------------------

    def join(self) -> None:
        alive = self.living()
        if len(alive) > 2:
            self.try_join(*self.random.sample(alive, 2))

    def try_join(self, from_id: int, to_id: int) -> None:
        if self.random.random() < 0.25:
            self.dies_at = self.random.randrange(6)
        try:
            self.run(merge(self, from_id, to_id, cause="test"))
        except (OutcomeUnknown, NotFound, Conflict):
            pass
        finally:
            self.dies_at = None

    def part(self) -> None:
        merged = sorted(self.merged())
        if not merged:
            return
        from_id = self.random.choice(merged)
        to_id = self.merged()[from_id]
        if self.try_part(from_id) and self.random.random() < 0.3:
            self.try_join(from_id, to_id)

    def try_part(self, from_id: int) -> bool:
        if self.random.random() < 0.2:
            self.dies_at = self.random.randrange(3)
        try:
            self.run(undo(self, from_id))
        except (OutcomeUnknown, Conflict):
            return False
        except NotFound:
            if from_id not in self.erased:
                raise
            return False
        finally:
            self.dies_at = None
        return True

    def finish(self) -> None:
        """What a driver left behind is finished by whoever meets it."""
        self.run(finish(self, sorted(self.merged())))

    def erase(self, id: int) -> set[int]:
        """Everybody who was this person."""
        gone = set(self.run(erasing.erase(self, id, f"r{len(self.erased)}")).people)
        self.erased |= gone
        self.ids = [one for one in self.ids if one not in gone]
        return gone


_OF_PEOPLE = ("profiles", "consents", "memberships", "attribute_times", "predictions", "events")
_OF_PEOPLE += ("event_months", "purchased_items")
_EMPTY = dict.fromkeys(("campaign_id", "message_key", "item", "amount", "properties", "merge_id"))
_ITEMS = [None, "Oslo", "STRASSE", "strasse", "a'b"]
_PROPERTIES = [text for text in drawn.PROPERTIES if text and text.startswith("{")]
