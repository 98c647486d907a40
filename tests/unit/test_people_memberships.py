"""Memberships: answers and lists become one row per person, one event per move, counts per day."""

import json

import pyarrow as pa
import pytest

from manta.errors import InvalidRequest
from manta.people.commands import ApplyMemberships, EditList, RemoveMembers, Snapshot
from manta.people.definitions import SetDefinition
from tests.unit.people_shard import Shard
from tests.unit.segments_house import define

RULE = {"attribute": {"name": "city", "operator": "is_set"}}


@pytest.fixture
def shard() -> Shard:
    shard = Shard()
    for id in (1, 3):
        shard.run(define(id, RULE))
    return shard


def members(shard):
    return {p: s for p, s in shard.rows("SELECT subscriber_id, segments FROM memberships") if s}


def people(shard, *names):
    return [shard.person(f"{name}@example.com") for name in names]


def apply(shard, *wanted, source="rule"):
    rows = pa.table(
        list(map(list, zip(*wanted, strict=True))), names=["subscriber_id", "segment_id", "member"]
    )
    answer = shard.answer(ApplyMemberships(None, rows, source))
    return answer.entered, answer.left


def edit(shard, segment, add=(), remove=()):
    answer = shard.answer(
        EditList(None, segment, pa.array(add, pa.int64()), pa.array(remove, pa.int64()), "api")
    )
    return answer.entered, answer.left


def test_people_come_and_go_in_many_segments_at_once(shard):
    ann, bob, cem = people(shard, "ann", "bob", "cem")
    assert apply(shard, (ann, 3, True), (bob, 3, True), (404, 3, True)) == (2, 0)
    assert apply(shard, (ann, 1, True), (bob, 3, False), (cem, 1, False)) == (1, 1)
    assert members(shard) == {ann: [1, 3]}
    assert apply(shard, (ann, 1, True), (ann, 3, True), (bob, 3, False)) == (0, 0)
    assert json.loads(shard.history[0]["properties"]) == {
        "segment": 3,
        "member": True,
        "source": "rule",
    }
    moved = [json.loads(row["properties"]) for row in shard.history]
    assert [(m["segment"], m["member"]) for m in moved] == [
        (3, True),
        (3, True),
        (1, True),
        (3, False),
    ]
    assert shard.kinds() == ["membership_changed"] * 4


def test_answers_for_segments_that_are_not_live_are_passed_over(shard):
    (ann,) = people(shard, "ann")
    shard.run(define(1, None, version=2))
    shard.run(define(3, RULE, version=2, live=False))
    shard.run(define(4, RULE, type="list", live=False))
    wanted = [(ann, id, True) for id in (1, 3, 4, 5)]
    assert apply(shard, *wanted) == (0, 0)
    assert shard.kinds() == []


def test_days_count_who_came_and_went(shard):
    ann, bob = people(shard, "ann", "bob")
    apply(shard, (ann, 3, True), (bob, 3, True))
    apply(shard, (ann, 3, False), (ann, 1, True))
    shard.pass_time(days=1)
    apply(shard, (ann, 3, True))
    days = shard.rows(
        "SELECT segment_id, day(day), entered, departed FROM segment_days ORDER BY 1, 2"
    )
    assert days == [(1, 1, 1, 0), (3, 1, 2, 1), (3, 2, 1, 0)]


def test_a_list_is_edited_by_hand(shard):
    ann, bob, cem = people(shard, "ann", "bob", "cem")
    assert edit(shard, 9, add=[ann, bob, bob, 404]) == (2, 0)
    assert edit(shard, 9, add=[cem, ann], remove=[ann, cem]) == (0, 1)
    assert members(shard) == {bob: [9]}
    with pytest.raises(InvalidRequest, match="in one edit"):
        edit(shard, 9, add=list(range(50_001)))


def test_a_snapshot_is_who_the_rule_holds_for_at_that_instant(shard):
    ann, bob = people(shard, "ann", "bob")
    shard.load("profiles", {"subscriber_id": ann, "attr_city": "Oslo"})
    edit(shard, 7, add=[bob])
    snapshot = Snapshot(None, 7, RULE, {"city": "string"}, "api")
    answer = shard.answer(snapshot)
    assert (answer.entered, answer.left) == (1, 1)
    shard.load("profiles", {"subscriber_id": bob, "attr_city": "Rome"})
    assert members(shard) == {ann: [7]}
    assert shard.answer(snapshot).entered == 1


def test_a_snapshot_by_an_attribute_that_nobody_has(shard):
    (ann,) = people(shard, "ann")
    rule = {"not": {"attribute": {"name": "plan", "operator": "equals", "value": "x"}}}
    assert shard.answer(Snapshot(None, 7, rule, {"plan": "string"}, "api")).entered == 1
    assert members(shard) == {ann: [7]}


def test_a_segment_that_is_no_more_loses_its_members_some_at_a_time(shard):
    ann, bob, cem = people(shard, "ann", "bob", "cem")
    apply(shard, *[(id, 3, True) for id in (ann, bob, cem)], (ann, 1, True))
    shard.run(SetDefinition(None, "segment", "3", 2, None))
    remove = RemoveMembers(None, 3, "deleted", most=2)
    assert [shard.answer(remove).left for _ in range(3)] == [2, 1, 0]
    assert members(shard) == {ann: [1]}
    assert shard.rows("SELECT DISTINCT segment_id FROM segment_days") == [(1,)]


def test_a_batch_of_thousands_is_set_wise(shard):
    ids = [shard.person(f"p{n}@example.com") for n in range(3)]
    many = ids + list(range(10**6, 10**6 + 2_000))
    assert apply(shard, *[(id, 3, True) for id in many]) == (3, 0)
    assert members(shard) == {id: [3] for id in ids}
