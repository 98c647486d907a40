"""Memberships: rule answers become one row per person and one event per move."""

import json

import pyarrow as pa

from manta.people.commands import UpdateMemberships
from tests.unit.people_shard import Shard


def members(shard):
    return {p: s for p, s in shard.rows("SELECT subscriber_id, segments FROM memberships") if s}


def update(shard, segment, ids, among=None):
    among = None if among is None else pa.array(among, pa.int64())
    answer = shard.answer(
        UpdateMemberships(None, segment, pa.array(ids, pa.int64()), among, "rule")
    )
    return answer.entered, answer.left


def test_people_come_and_go():
    shard = Shard()
    ann, bob, cem = (shard.person(f"{name}@example.com") for name in ("ann", "bob", "cem"))
    assert update(shard, 3, [ann, bob, 404]) == (2, 0)
    assert update(shard, 1, [ann]) == (1, 0)
    assert members(shard) == {ann: [1, 3], bob: [3]}
    assert update(shard, 3, [ann, bob]) == (0, 0)
    assert update(shard, 3, [cem], among=[cem, ann]) == (1, 1)
    assert members(shard) == {ann: [1], bob: [3], cem: [3]}
    assert update(shard, 3, []) == (0, 2)
    assert members(shard) == {ann: [1]}
    assert json.loads(shard.history[0]["properties"]) == {
        "segment": 3,
        "member": True,
        "source": "rule",
    }
    assert shard.kinds() == ["membership_changed"] * 7


def test_members_outside_of_those_asked_do_not_count():
    shard = Shard()
    ann, bob = (shard.person(f"{name}@example.com") for name in ("ann", "bob"))
    assert update(shard, 3, [ann, ann, bob], among=[ann]) == (1, 0)
    assert members(shard) == {ann: [3]}
