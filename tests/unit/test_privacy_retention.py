"""Retention periods: what is deleted altogether, and when."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from manta.clock import ManualClock
from manta.store import lake
from manta.store.objects import FileObjects
from manta.store.retention import Expire
from manta.store.settings import ShardSettings
from tests.unit.store_shard import START, event, flush, recovered, upsert, write

DAY = timedelta(days=1)


def test_events_leave_the_lake(tmp_path: Path) -> None:
    clock, settings = ManualClock(START), ShardSettings(event_days=100)
    store = recovered(FileObjects(tmp_path), clock=clock, settings=settings)
    for ages in ((300, 250), (200, 50), (110, 90), (20, 10)):
        store.execute([write(*(event(1, "visited", START - DAY * age) for age in ages))])
        flush(store)
    clock.advance(86_400)  # the first of these flushes has looked already
    store.execute([write(event(1, "visited", START))])
    flush(store)
    with lake.open(str(tmp_path)) as connection:
        found = connection.sql("SELECT occurred_at FROM events ORDER BY 1").fetchall()
    ages = [(START - at) // DAY for (at,) in found]
    # 110 goes when its file reaches a month behind.
    assert ages == [110, 90, 50, 20, 10, 0]


@pytest.mark.parametrize(
    ("columns", "identity", "last", "goes"),
    [
        ({}, None, None, True),
        ({}, "anonymous_id", 500, True),
        ({}, "anonymous_id", 399, False),
        ({}, "external_id", None, False),
        ({"email": "a@b.example"}, None, None, False),
        ({"created_at": START - DAY * 10}, None, None, False),
    ],
)
def test_silent_anonymous_people(
    tmp_path: Path, columns: dict[str, object], identity: str | None, last: int | None, goes: bool
) -> None:
    store = recovered(FileObjects(tmp_path))
    row = {"subscriber_id": 1, "created_at": START - DAY * 900, **columns}
    changes = [upsert("profiles", row)]
    if identity:
        changes.append(upsert("identities", {"kind": identity, "value": "x", "subscriber_id": 1}))
    if last is not None:
        changes.append(event(1, "visited", START - DAY * last))
    store.execute([write(*changes)])
    store.execute([Expire(ShardSettings())])
    assert (store.database.rows("SELECT 1 FROM profiles") == []) is goes


def test_quarantine(tmp_path: Path) -> None:
    store = recovered(FileObjects(tmp_path))
    rows = [{"quarantine_id": n, "received_at": START - DAY * age} for n, age in ((1, 31), (2, 29))]
    store.execute([write(upsert("quarantine", *rows))])
    assert store.execute([Expire(ShardSettings())])[0].answer == 1
    assert store.database.rows("SELECT quarantine_id FROM quarantine") == [(2,)]
