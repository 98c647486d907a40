"""Caps and quiet hours at hand-off: what counts, in whose day, and what the ledger says of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta import collections
from manta.command import Change, Op
from manta.delivery.frequency import QuietHours, time
from manta.delivery.outcomes import OutcomeKind
from manta.errors import InvalidRequest
from manta.people.definitions import SetDefinition
from manta.rules.meaning import zone_of
from tests.unit.delivery_shard import SendingShard, people, plan, refs
from tests.unit.people_shard import START
from tests.unit.serve_fakes import FakeDocuments

NIGHT = {"name": "Night", "start": "21:00", "end": "08:00"}


def told(shard: SendingShard, collection: str, fields: dict[str, Any], id: str = "1") -> None:
    """Define it as the Catalog does."""
    kind = collections.COLLECTIONS[collection]
    document = {**kind.check(fields, FakeDocuments()), "id": int(id), "version": 1}
    body = kind.shard_body(document, FakeDocuments())
    shard.run(SetDefinition(None, kind.shard_kind, id, 1, body))


def cap(limit: int, **fields: Any) -> dict[str, Any]:
    return {"name": "Cap", "limit": limit, **fields}


def send_all(shard: SendingShard, lease_id: int) -> list[int]:
    """Lease and have everything accepted; who got something."""
    grant = shard.lease(lease_id)
    shard.settle(lease_id, *(shard.outcome(ref, OutcomeKind.ACCEPTED) for ref in refs(grant)))
    return people(grant)


def reasons(shard: SendingShard) -> list[tuple[Any, ...]]:
    return shard.rows("SELECT state, reason, category, due_at FROM ledger ORDER BY campaign_id")


def test_a_cap_counts_what_was_accepted_by_other_campaigns() -> None:
    shard = SendingShard(1)
    told(shard, "caps", cap(2, channel="email", days=1))
    for number in (1, 2, 3):
        shard.start(plan(number))
        assert send_all(shard, number) == ([1] if number < 3 else [])
    assert reasons(shard)[2] == ("suppressed", "frequency_cap", "cap:1", None)


def test_messages_of_one_lease_count_for_each_other_and_those_on_their_way_too() -> None:
    shard = SendingShard(1)
    told(shard, "caps", cap(2, hours=24))
    for number in (1, 2, 3):
        shard.start(plan(number))
    assert people(shard.lease(1, limit=1)) == [1]
    assert people(shard.lease(2)) == [1]
    assert sorted(state for state, *_ in reasons(shard)) == ["leased", "leased", "suppressed"]


def test_a_message_that_failed_or_expired_does_not_count() -> None:
    shard = SendingShard(1)
    told(shard, "caps", cap(1, days=7))
    shard.start(plan(1))
    grant = shard.lease(1)
    shard.settle(1, shard.outcome(refs(grant)[0], OutcomeKind.FAILED))
    shard.start(plan(2))
    assert send_all(shard, 2) == [1]


def test_a_cap_of_one_topic_leaves_the_others_alone() -> None:
    shard = SendingShard(1)
    shard.load("consents", shard.consent(1) | {"topic": "offers"})
    told(shard, "caps", cap(1, topic="offers", days=1))
    for number, topic in ((1, "offers"), (2, "news"), (3, "offers")):
        shard.start(plan(number, topic=topic))
        send_all(shard, number)
    assert [state for state, *_ in reasons(shard)] == ["accepted", "accepted", "suppressed"]


def test_calendar_days_are_the_persons_own() -> None:
    """START is 12:00 UTC: at 23:30 in Kiritimati (+14) it is still yesterday's evening."""
    shard = SendingShard(2)
    shard.load("profiles", {"subscriber_id": 1, "time_zone": "Pacific/Kiritimati"})
    told(shard, "caps", cap(1, days=1))
    midnight_there = datetime(START.year, START.month, START.day, 10)  # of the next day there
    shard.now = midnight_there - timedelta(minutes=30)
    shard.start(plan(1, due_at=START - timedelta(days=1)))
    assert send_all(shard, 1) == [1, 2]
    shard.now = midnight_there + timedelta(minutes=30)
    shard.start(plan(2, due_at=START - timedelta(days=1)))
    assert send_all(shard, 2) == [1], "a new day there, the same one in UTC"


def test_a_sliding_window_is_half_open() -> None:
    shard = SendingShard(1)
    told(shard, "caps", cap(1, hours=24))
    shard.start(plan(1))
    assert send_all(shard, 1) == [1]
    first = shard.now
    shard.now = first + timedelta(hours=24) - timedelta(microseconds=1)
    shard.start(plan(2, due_at=first))
    assert send_all(shard, 2) == []
    shard.now = first + timedelta(hours=24)
    shard.start(plan(3, due_at=first))
    assert send_all(shard, 3) == [1]


def test_transactional_mail_is_neither_counted_nor_held() -> None:
    shard = SendingShard(1)
    told(shard, "caps", cap(1, days=1))
    told(shard, "quiet_hours", NIGHT | {"start": "00:00", "end": "23:59"})
    shard.start(plan(1, kind="transactional"))
    shard.start(plan(2, kind="transactional"))
    assert send_all(shard, 1) == [1, 1]


def test_what_a_person_got_under_another_name_counts() -> None:
    """Person 9, of another shard, was merged into person 1: copies of its events came along."""
    shard = SendingShard(2)
    told(shard, "caps", cap(1, days=1))
    alias = {"from_id": 9, "to_id": 1, "merge_id": 5, "state": "merged"}
    shard.load("aliases", alias)
    copy = {"subscriber_id": 1, "type": "sent", "item": "marketing", "event_id": 3, "merge_id": 5}
    rows = pa.Table.from_pylist([copy | {"campaign_id": 77, "occurred_at": shard.now}])
    shard.write(Change("events", Op.INSERT, rows))
    shard.start(plan(1))
    assert send_all(shard, 1) == [2]
    shard.load("aliases", alias | {"state": "undone"})
    shard.start(plan(2))
    assert send_all(shard, 2) == [1]


def test_in_quiet_hours_a_message_waits_for_their_end() -> None:
    shard = SendingShard(2)
    shard.load("profiles", {"subscriber_id": 1, "time_zone": "Europe/Oslo"})
    told(shard, "quiet_hours", NIGHT)
    shard.now = datetime(2026, 7, 1, 20)  # 22:00 in Oslo
    shard.start(plan(1, due_at=shard.now, expires_at=shard.now + timedelta(days=2)))
    assert send_all(shard, 1) == [2]
    assert shard.row(1)["state"] == "planned" and shard.row(1)["reason"] == "quiet_hours"
    assert shard.row(1)["due_at"] == datetime(2026, 7, 2, 6)
    shard.now = datetime(2026, 7, 2, 6)
    assert send_all(shard, 2) == [1]
    assert shard.row(1)["reason"] is None


def test_quiet_hours_may_skip() -> None:
    shard = SendingShard(1)
    told(
        shard,
        "quiet_hours",
        NIGHT
        | {"then": "skip", "start": "00:00", "end": "24:00"}
        | {"weekdays": ["mon", "tue", "wed", "thu", "fri", "sat"]},
    )
    shard.now = datetime(2026, 7, 1, 12)  # a Wednesday
    shard.start(plan(1, due_at=shard.now, expires_at=shard.now + timedelta(days=2)))
    assert send_all(shard, 1) == []
    assert reasons(shard) == [("suppressed", "quiet_hours", "quiet_hours:1", None)]


@given(
    now=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
    start=st.times(),
    end=st.times(),
    name=st.sampled_from(["UTC", "Europe/Oslo", "America/Sao_Paulo", "Australia/Lord_Howe"]),
    weekdays=st.sets(st.integers(0, 6), min_size=1),
)
def test_the_end_of_quiet_is_later_and_not_quiet(
    now: datetime, start: time, end: time, name: str, weekdays: set[int]
) -> None:
    start, end = start.replace(second=0, microsecond=0), end.replace(second=0, microsecond=0)
    zone = zone_of(name, "UTC")
    quiet = QuietHours("1", "*", start, end, tuple(sorted(weekdays)), "hold")
    until = quiet.end_of(now, zone)
    if until is not None:
        assert now < until <= now + timedelta(hours=26)
        again = quiet.end_of(until, zone)
        assert again is None or start == end or (again - until) > timedelta(0)


@pytest.mark.parametrize(
    ("collection", "fields", "path"),
    [
        ("caps", cap(1), "days"),
        ("caps", cap(1, days=1, hours=1), "days"),
        ("caps", cap(0, days=1), "limit"),
        ("caps", cap(1, days=31), "days"),
        ("caps", cap(1, days=1, channel="fax"), "channel"),
        ("caps", cap(1, days=1, colour="red"), "colour"),
        ("quiet_hours", NIGHT | {"start": "25:00"}, "start"),
        ("quiet_hours", NIGHT | {"weekdays": ["Monday"]}, "weekdays"),
        ("quiet_hours", NIGHT | {"end": "21:00"}, "end"),
        ("quiet_hours", NIGHT | {"then": "drop"}, "then"),
    ],
)
def test_what_is_wrong_is_named(collection: str, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        collections.save(FakeDocuments(), collection, fields, START)
    assert caught.value.path == path
