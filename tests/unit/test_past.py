"""The lake as it was at an instant, against what the shard itself said at that instant."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from manta.clock import ManualClock
from manta.command import Command
from manta.people.commands import SetConsent, Suppress, UpsertPeople
from manta.people.consents import Unsubscribe
from manta.people.suppressions import LiftSuppression
from manta.store import lake
from manta.store.objects import FileObjects
from manta.store.past import turn_back
from manta.store.shard import ShardStore
from tests.unit.store_shard import START, event, flush, person, write
from tests.unit.store_shard import upsert as upsert_rows

READS = {
    "profiles": "SELECT subscriber_id, email, time_zone, attr_city, attr_score, attr_vip,"
    " attr_birthday, attr_tags FROM profiles",
    "consents": "SELECT subscriber_id, channel, topic, status FROM consents",
    "suppressions": "SELECT channel, address, reason FROM suppressions",
    "attribute_times": "SELECT subscriber_id, name, changed_at FROM attribute_times",
    "events": "SELECT subscriber_id, type, event_id FROM events WHERE type = 'unsubscribed'",
}
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "time_zone": (pa.string(), ["UTC", "Europe/Oslo", None]),
    "attr_city": (pa.string(), ["Linz", 'O"slo', "é\\n", None]),
    "attr_score": (pa.float64(), [0.1, 1e300, -2.0, None]),
    "attr_vip": (pa.bool_(), [True, False, None]),
    "attr_birthday": (pa.timestamp("us"), [datetime(1990, 2, 28), datetime(2000, 1, 1, 3), None]),
    "attr_tags": (pa.list_(pa.string()), [["a", "b,'\""], [], None]),
}


def upsert(random: Random) -> Command:
    rows: dict[str, Any] = {"email": pa.array([f"p{random.randrange(6)}@x.example"])}
    for name, (kind, values) in VALUES.items():
        rows[name] = pa.array([random.choice(values)], kind)
    return UpsertPeople(None, pa.table(rows), "test")


def command(random: Random, people: list[int]) -> Command:
    kind = random.randrange(6)
    if kind < 2 or not people:
        return upsert(random)
    person = random.choice(people)
    if kind == 2:
        status = random.choice(["subscribed", "unsubscribed", "pending"])
        return SetConsent(None, person, "email", random.choice(["news", "offers"]), status, "t")
    if kind == 3:
        return Unsubscribe(None, person, None, random.choice(["news", None]), "t")
    address = f"p{random.randrange(6)}@x.example"
    if kind == 4:
        reason = random.choice(["hard_bounce", "manual", "complaint"])
        return Suppress(None, "email", address, reason, "t", "")
    return LiftSuppression(None, "email", address, "t", "")


def read(source: Any) -> dict[str, list[Any]]:
    return {name: sorted(source(sql), key=repr) for name, sql in READS.items()}


@pytest.mark.parametrize("seed", range(3))
def test_the_past_is_what_it_was(tmp_path: Path, seed: int) -> None:
    random, clock = Random(seed), ManualClock(START)
    objects = FileObjects(tmp_path)
    store = ShardStore(objects, "default", 0, b"n" * 16, clock, Random(seed))
    store.recover()
    for name, (kind, values) in VALUES.items():  # each attribute has its column from the start
        if name != "time_zone":
            rows = {"email": pa.array(["p0@x.example"]), name: pa.array([values[0]], kind)}
            store.execute([UpsertPeople(None, pa.table(rows), "test")])
    known: list[tuple[datetime, dict[str, list[Any]]]] = []
    for _ in range(60):
        clock.advance(random.choice([0.001, 60.0, 86_400.0]))
        people = [id for (id,) in store.database.rows("SELECT subscriber_id FROM profiles")]
        outcomes = store.execute([command(random, people)])
        assert not outcomes[0].failed, outcomes[0].answer
        known.append((clock.now(), read(store.database.rows)))
        if random.random() < 0.2:
            flush(store)
    flush(store)
    for instant, then in [random.choice(known) for _ in range(12)]:
        for at in (instant, instant + timedelta(microseconds=500)):
            with lake.open(str(tmp_path)) as connection:
                turn_back(connection, at)
                assert read(lambda sql, c=connection: c.sql(sql).fetchall()) == then, at


def test_a_value_that_a_merge_brought_keeps_its_own_time(tmp_path: Path) -> None:
    clock = ManualClock(START)
    store = ShardStore(FileObjects(tmp_path), "default", 0, b"n" * 16, clock, Random(1))
    store.recover()
    earlier, merged = START - timedelta(days=9), START - timedelta(days=1)
    said = '{"source":"merge","old":{},"new":{"attr_vip":true}}'
    store.execute(
        [
            write(
                person(1, attr_vip=True, created_at=START - timedelta(days=20)),
                upsert_rows(
                    "attribute_times",
                    {"subscriber_id": 1, "name": "vip", "changed_at": earlier},
                ),
                event(1, "profile_changed", merged, event_id=5, properties=said),
            )
        ]
    )
    flush(store)
    with lake.open(str(tmp_path), as_of=START) as connection:
        assert connection.sql(READS["attribute_times"]).fetchall() == [(1, "vip", earlier)]
