"""Live segments by rounds: what touches whom, time, races, and agreement with whole evaluation."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from manta.command import Change, Op
from manta.people.commands import ApplyMemberships, EditList
from manta.schema import TABLES
from manta.segments import live as live_module
from manta.segments.index import index_of, read_index
from manta.segments.notes import ROWS_MAX, Notes
from manta.segments.queries import QUERIES
from manta.segments.touched import by_person, touched
from manta.store.objects import FileObjects
from tests.unit.segments_house import House, columns, define
from tests.unit.store_shard import START, delete, event, person, upsert

CITY = {"attribute": {"name": "city", "operator": "equals", "value": "Oslo"}}
SCORE = {"attribute": {"name": "score", "operator": "at_least", "value": 3}}
BOUGHT = {"event": {"type": "purchased", "within": {"last": {"days": 2}}}}
NOT_BOUGHT = {"not": BOUGHT}
OFTEN = {
    "event": {
        "type": "viewed",
        "within": {"last": {"hours": 3}},
        "count": {"operator": "at_least", "value": 2},
    }
}
SPENT = {
    "event": {
        "type": "purchased",
        "within": {"last": {"days": 1}},
        "sum": {"property": "amount", "operator": "greater_than", "value": 10},
    }
}
NEWS = {"consent": {"channel": "email", "topic": "news", "status": "subscribed"}}
GONE = {"suppressed": {"channel": "email"}}
LISTED = {"member": {"segment": 50}}
IGNORED = {"last_messages": {"number": 2, "which": "none", "were": "opened"}}
BIRTHDAY = {"attribute": {"name": "birthday", "operator": "anniversary_today"}}
HALF = {"bucket": {"salt": "s", "from": 0, "to": 50}}
MIXED = {"all": [{"any": [CITY, SCORE]}, {"not": {"all": [NEWS, BOUGHT]}}]}
RULES = [CITY, SCORE, BOUGHT, NOT_BOUGHT, OFTEN, SPENT, NEWS, GONE, LISTED, IGNORED, BIRTHDAY]
RULES += [HALF, MIXED, {"exactly_one": [OFTEN, SPENT, NEWS]}]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(FileObjects(tmp_path / "root"))


def suppress(address: str, **more: Any) -> Change:
    row = {"channel": "email", "address": address, "reason": "complaint", "expires_at": None}
    return upsert("suppressions", row | more)


def test_each_kind_of_change_asks_only_the_rules_it_can_move(house: House) -> None:
    rules = dict(enumerate(RULES, 1))
    house.write(columns(1, 2))
    house.do(*[define(id, rule) for id, rule in rules.items()])
    house.turn()
    index = house.live.index
    expected = [
        (person(1, attr_city="Rome"), {1, 13}),
        (person(1, attr_score=5.0), {2, 13}),
        (person(1, time_zone="Asia/Tokyo"), {11}),
        (person(1, locale="en"), set()),
        (person(3, email="p3@example.com", created_at=START), set(rules)),
        (event(1, "purchased"), {3, 4, 6, 13, 14}),
        (event(1, "viewed"), {5, 14}),
        (event(1, "sent"), {10}),
        (event(1, "clicked"), set()),
        (upsert("traffic_corrections", _corrected(1)), {10}),
        (upsert("consents", _consent("news")), {7, 13, 14}),
        (
            delete("consents", {"subscriber_id": 1, "channel": "email", "topic": "news"}),
            {7, 13, 14},
        ),
        (upsert("consents", _consent("offers")), set()),
        (_moved_in(50), {9}),
        (_moved_in(51), set()),
        (upsert("aliases", {"from_id": 1, "merge_id": 1, "to_id": 1}), set(rules)),
    ]
    for change, segments in expected:
        people, whole = by_person(touched([change], index).pieces, 100)
        assert (people, whole) == (dict.fromkeys(people, frozenset(segments)), frozenset()), change
        assert bool(people) == bool(segments)
    found = touched([suppress("p1@example.com")], index)
    assert (found.pieces, found.addresses[0].to_pylist()) == ([], ["p1@example.com"])
    assert touched([delete("profiles", {"subscriber_id": 2})], index).gone[0].tolist() == [2]


def _corrected(id: int) -> dict[str, Any]:
    return {"subscriber_id": id, "event_id": 7, "human": 0.0, "cause": "x", "changed_at": START}


def _consent(topic: str) -> dict[str, Any]:
    return {"subscriber_id": 1, "channel": "email", "topic": topic, "status": "subscribed"}


def _moved_in(segment: int) -> Change:
    said = json.dumps({"segment": segment, "member": True, "source": "api"})
    return event(1, "membership_changed", properties=said)


def test_every_table_that_rules_look_at_is_watched() -> None:
    """A new table must be thought of here: does it move an answer?"""
    unwatched = {"identities", "ledger", "senders", "memberships", "segment_days", "quarantine"}
    unwatched |= {"outbox", "campaigns", "retention"}
    unwatched |= {"ledger_days", "ledger_campaigns"}
    from manta.segments.notes import WATCHED

    assert {*TABLES} == unwatched | WATCHED


def test_people_who_change_enter_and_leave(house: House) -> None:
    house.write(columns(1, 2, 3))
    house.do(define(1, CITY), define(2, BOUGHT), define(3, NOT_BOUGHT))
    house.turn()
    assert house.members() == {1: [1, 2, 3], 3: [1, 2, 3]}
    house.write(person(1, attr_city="Rome"), event(2, "purchased", house.now))
    assert house.turn() == 2
    assert house.members() == {1: [2, 3], 2: [2], 3: [1, 3]}
    house.write(
        delete("profiles", {"subscriber_id": 3}), delete("memberships", {"subscriber_id": 3})
    )
    house.turn()
    assert house.members() == house.by_rules() == {1: [2], 2: [2], 3: [1]}


def test_time_alone_moves_people_at_its_instant(house: House) -> None:
    house.write(columns(1, 2))
    house.do(define(1, BOUGHT), define(2, BIRTHDAY))
    house.turn()
    house.write(event(1, "purchased", house.now))
    house.turn()
    left_at = START + timedelta(days=2)
    assert house.live.flips.earliest() == left_at
    house.clock.advance(2 * 86_400 - 0.001)
    assert house.turn() == 0
    assert house.members() == {1: [1]}
    house.clock.advance(0.001)
    assert house.turn() == 1
    assert house.members() == {}
    for _ in range(5):  # bounds come earlier than the birthday, and nearer each time
        earliest = house.live.flips.earliest()
        assert earliest is not None and earliest > house.now
        assert house.members() == {}
        house.clock.advance((earliest - house.now).total_seconds())
        house.turn()
        if house.members():
            break
    assert house.now == datetime(2027, 1, 1)
    assert house.members() == {2: [1, 2]}


def test_a_day_that_comes_for_everybody_is_evaluated_whole(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "BULK_PEOPLE", 3)
    house.write(columns(*range(1, 8)))
    house.do(define(1, BIRTHDAY))
    house.turn()
    house.clock.advance(400 * 86_400)
    assert house.turn() == 0
    assert house.members() == house.by_rules()
    assert house.live.flips.earliest() > house.now


def test_many_changes_at_once_are_evaluated_whole(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "BULK_PEOPLE", 3)
    house.write(columns(*range(1, 8)))
    house.do(define(1, CITY), define(2, BOUGHT))
    house.turn()
    house.write(*[person(id, attr_city="Rome") for id in range(1, 7)])
    house.write(event(3, "purchased", house.now))
    assert house.turn() == 1  # only the buyer is asked by name
    assert house.members() == house.by_rules() == {1: [7], 2: [3]}


def test_what_does_not_fit_into_the_notes_is_evaluated_whole(house: House) -> None:
    house.write(columns(1, 2))
    house.do(define(1, CITY))
    house.turn()
    house.write(person(1, attr_city="Rome"))
    house.notes.add([Change("events", Op.INSERT, _events(ROWS_MAX + 1))])
    house.do(define(2, {"not": CITY}))
    house.turn()
    assert house.members() == house.by_rules() == {1: [2], 2: [1]}


def _events(rows: int) -> pa.Table:
    kinds = pa.array(["x"]).take(pa.nulls(rows, pa.int64()).fill_null(0))
    return pa.table({"subscriber_id": pa.nulls(rows, pa.int64()).fill_null(1), "type": kinds})


def test_segments_change_stop_and_go(house: House) -> None:
    house.write(columns(1, 2), person(2, attr_city="Rome"))
    house.do(define(1, CITY), define(2, CITY), define(3, CITY))
    house.turn()
    assert house.members() == {1: [1], 2: [1], 3: [1]}
    house.do(define(1, {"not": CITY}, version=2), define(2, None, version=2))
    house.do(define(3, CITY, version=2, live=False))
    house.turn()
    assert house.members() == {1: [2]}
    assert list(house.live.index.segments) == [1]
    assert house.rows("SELECT DISTINCT segment_id FROM segment_days") == [(1,)]


def test_a_definition_that_cannot_be_read_keeps_its_members(house: House) -> None:
    house.write(columns(1))
    house.do(define(1, CITY), define(2, CITY))
    house.turn()
    house.do(define(1, {"no such": {}}, version=2))
    house.turn()
    assert house.members() == {1: [1], 2: [1]}
    assert "no such" in house.live.index.broken[1]


def test_a_rule_that_errs_does_not_stop_the_others(house: House) -> None:
    house.write(columns(1))
    house.do(define(1, CITY), define(2, CITY))
    house.turn()

    def err(*arguments: Any) -> bool:
        raise ZeroDivisionError("oh")

    segment = house.live.index.segments[1]
    bad = segment._replace(closure=type(segment.closure)(err, ()))
    house.live.index = index_of([bad, house.live.index.segments[2]], "UTC")
    house.write(person(1, attr_city="Rome"))
    house.turn()
    assert house.members() == {1: [1]}
    assert house.live.troubles == {1: "ZeroDivisionError: oh"}


def test_an_answer_of_an_older_state_is_put_right_by_the_next_round(house: House) -> None:
    house.write(columns(1, 2))
    house.do(define(1, CITY))
    house.turn()
    house.write(person(1, attr_city="Rome"))
    stale = house.look()  # says that 1 has left
    house.write(person(1, attr_city="Oslo"))  # and here again, before that is applied
    house.do(ApplyMemberships(None, stale.moves, "rule"))
    assert house.members() == {1: [2]}
    house.turn()
    assert house.members() == house.by_rules() == {1: [1, 2]}


def test_a_whole_evaluation_does_not_undo_what_rounds_found_meanwhile(house: House) -> None:
    house.write(columns(1, 2))
    house.do(define(1, CITY))
    house.look()  # takes the definition over
    (segment,), recorder = house.live.take_whole(10)
    stale = house.look_whole(1)  # says that 1 and 2 are inside
    house.write(person(1, attr_city="Rome"))
    found = house.look()
    assert list(found.asked) == [1]
    assert found.moves.num_rows == 0  # not inside on record: nothing to do yet
    house.do(ApplyMemberships(None, found.moves, "rule"))
    house.do(ApplyMemberships(None, stale, "rule"))
    assert house.members() == {1: [1, 2]}
    moved = stale["subscriber_id"].to_numpy()
    house.live.taken_whole(recorder, frozenset({segment.id}), moved)
    assert house.turn() == 1
    assert house.members() == house.by_rules() == {1: [2]}


def test_what_was_missed_by_a_crash_is_found_at_the_start(tmp_path: Path) -> None:
    objects = FileObjects(tmp_path / "root")
    house = House(objects)
    house.write(columns(1, 2))
    house.do(define(1, CITY), define(2, BOUGHT), define(3, CITY))
    house.turn()
    house.write(person(1, attr_city="Rome"), event(2, "purchased", house.now))
    house.do(define(3, None, version=2))
    after = House(objects, nonce=2)
    assert after.members() == {1: [1, 2], 3: [1, 2]}
    after.turn()
    assert after.members() == after.by_rules() == {1: [2], 2: [2]}
    assert after.live.flips.earliest() == START + timedelta(days=2)


def test_a_round_that_fails_forgets_nobody(house: House) -> None:
    house.write(columns(1))
    house.do(define(1, CITY))
    house.turn()
    house.write(person(1, attr_city="Rome"))
    taken = house.notes.take()
    with pytest.raises(AttributeError):
        house.live.round(None, taken, house.now)  # type: ignore[arg-type]
    house.turn()
    assert house.members() == {}


def test_queries_say_who_is_in_how_many_and_since_when(house: House) -> None:
    house.write(columns(1, 2, 3))
    house.do(define(1, CITY), define(2, SCORE), define(4, NOT_BOUGHT))
    house.turn()
    house.clock.advance(86_400)
    house.write(person(1, attr_city="Rome"), person(2, attr_score=9.0))
    house.turn()

    def ask(name: str, **arguments: Any) -> Any:
        return QUERIES[name](house.store.database, house.store.context(), arguments)

    assert ask("membership", segment_id=1) == {"members": 2, "entered": 0, "left": 1}
    page = ask("members", segment_id=1, after=2, limit=5)
    assert page == [{"subscriber_id": 3, "email": "p3@example.com"}]
    assert ask("overlap", segment_ids=[1, 2, 3]) == [
        {"a": 1, "b": 1, "people": 2},
        {"a": 1, "b": 2, "people": 1},
        {"a": 2, "b": 1, "people": 1},
        {"a": 2, "b": 2, "people": 1},
    ]
    assert ask("growth", segment_id=1, days=3) == [
        {"day": "2026-02-28", "entered": 0, "left": 0, "members": 0},
        {"day": "2026-03-01", "entered": 3, "left": 0, "members": 3},
        {"day": "2026-03-02", "entered": 0, "left": 1, "members": 2},
    ]
    assert ask("drift", segment_id=1) == {1: {"missing": 0, "wrong": 0}}
    house.write(person(3, attr_city="Rome"))
    assert ask("drift")[1] == {"missing": 0, "wrong": 1}


def test_compiled_rules_are_kept_while_their_version_is(house: House) -> None:
    house.do(define(1, CITY), define(2, CITY))
    first = read_index(house.store.database, "UTC")
    house.do(define(1, SCORE, version=2))
    second = read_index(house.store.database, "UTC", first)
    assert second.segments[2] is first.segments[2]
    assert second.segments[1].version == 2


def test_notes_keep_only_what_rules_look_at(house: House) -> None:
    notes = Notes(house.clock)
    notes.add([upsert("senders", {"sender": "s", "epoch": 1})])
    assert not notes
    notes.add([person(1)])
    assert notes
    assert [change.table for change in notes.take().changes] == ["profiles"]
    assert not notes


@pytest.mark.parametrize("seed", range(3))
def test_members_are_those_of_a_whole_evaluation_at_every_quiet_moment(
    tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    house = House(FileObjects(tmp_path / "root"), zone=random.choice(["UTC", "Asia/Tokyo"]))
    ids = list(range(1, 13))
    house.write(columns(*ids))
    house.do(*[define(id, rule) for id, rule in enumerate(RULES, 1)])
    for step in range(16):
        for _ in range(random.randint(0, 4)):
            act(house, random, ids)
            if random.random() < 0.2:
                house.do(ApplyMemberships(None, house.look().moves, "rule"))
        if random.random() < 0.5:
            jump(house, random)
        if step == 8:
            house.do(define(1, random.choice(RULES), version=2))
        house.turn()
        assert house.members() == house.by_rules() | listed(house), (seed, step)


def listed(house: House) -> dict[int, list[int]]:
    found = house.members()
    return {50: found[50]} if 50 in found else {}


def act(house: House, random: Random, ids: list[int]) -> None:
    id, now = random.choice(ids), house.now
    at = now - timedelta(hours=random.choice([0, 0, 0, 1, 20, 30, 60]))
    at += random.choice([timedelta(0), timedelta(0), timedelta(minutes=4)])
    if not house.rows("SELECT 1 FROM profiles WHERE subscriber_id = ?", id):
        return house.write(columns(id))
    what = random.randrange(9)
    if what == 0:
        house.write(event(id, "purchased", at, amount=random.choice([5.0, 8.0, 20.0])))
    elif what == 1:
        house.write(event(id, "viewed", at))
    elif what == 2:
        key = random.randrange(4)
        kind = random.choice(["sent", "sent", "opened"])
        house.write(event(id, kind, at, message_key=key, item="marketing"))
    elif what == 3:
        city, score = random.choice(["Oslo", "Rome", None]), random.choice([1.0, 5.0, None])
        house.write(person(id, attr_city=city, attr_score=score))
    elif what == 4:
        status = random.choice(["subscribed", "unsubscribed"])
        house.write(upsert("consents", _consent("news") | {"subscriber_id": id, "status": status}))
    elif what == 5:
        later = random.choice([None, now + timedelta(hours=random.choice([1, 30]))])
        house.write(suppress(f"p{id}@example.com", expires_at=later))
    elif what == 6:
        one = pa.array([id], pa.int64())
        none = pa.array([], pa.int64())
        add, remove = random.choice([(one, none), (none, one)])
        house.do(EditList(None, 50, add, remove, "api"))
    elif what == 7:
        day = now.replace(year=1980) + timedelta(days=random.randint(-1, 2))
        house.write(person(id, attr_birthday=day, time_zone=random.choice([None, "America/Lima"])))
    else:
        house.write(delete("profiles", {"subscriber_id": id}))
        house.write(delete("memberships", {"subscriber_id": id}))


def jump(house: House, random: Random) -> None:
    earliest = house.live.flips.earliest()
    if earliest is not None and random.random() < 0.5:
        seconds = (earliest - house.now).total_seconds() + random.choice([-1e-6, 0, 1e-6])
    else:
        seconds = random.choice([60, 3 * 3600, 86_400])
    house.clock.advance(max(0.0, seconds))


def test_messages_that_leave_memory_are_no_longer_the_last_ones(tmp_path: Path) -> None:
    house = House(FileObjects(tmp_path / "root"), hot_event_days=400)
    house.write(columns(1, 2))
    house.do(define(1, {"last_messages": {"number": 1, "which": "none", "were": "opened"}}))
    house.write(event(1, "sent", house.now, message_key=1, item="marketing"))
    house.clock.advance(2 * 86_400)
    house.turn()
    assert house.members() == {1: [1]}
    house.clock.advance(400 * 86_400)
    house.do(*house.store.run_hooks().commands)
    house.turn()
    assert house.members() == house.by_rules() == {}
