"""What is known of people and events without SQL, against the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.command import Change, Op
from manta.store.database import ShardDatabase
from manta.store.presence import EventFilter, People


def test_no_event_is_ever_said_not_to_be_there() -> None:
    rng = np.random.default_rng(1)
    low, high = -(1 << 63), (1 << 63) - 1
    ids, others = rng.integers(low, high, 200_000), rng.integers(low, high, 200_000)
    known = EventFilter(ids[:100_000])
    known.add(ids[100_000:])
    assert known.may_hold(ids).all()
    assert known.may_hold(others).mean() < 0.01
    assert not known.is_full


steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "commit", "rollback"]), st.integers(1, 12)),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_people_are_those_of_the_table(steps: list[tuple[str, int]]) -> None:
    database = ShardDatabase()
    asked = np.arange(1, 13)
    database.begin()
    for kind, id in steps:
        rows: dict[str, Any] = {"subscriber_id": pa.array([id], pa.int64())}
        if kind == "commit":
            database.commit()
            database.begin()
        elif kind == "rollback":
            database.rollback()
            database.begin()
        else:
            op = Op.UPSERT if kind == "add" else Op.DELETE
            database.apply(database.prepare([Change("profiles", op, pa.table(rows))]))
        there = {n for (n,) in database.rows("SELECT subscriber_id FROM profiles")}
        assert database.here(asked).tolist() == [n in there for n in asked.tolist()]
    database.rollback()
    database.close()


def test_people_of_a_large_table() -> None:
    people = People(np.array([5, 3, 9]))
    people.add([4])
    people.remove([9, 3])
    people.add([3])
    assert people.among(np.array([3, 4, 5, 9, 10])).tolist() == [True, True, True, False, False]
    assert People(np.array([], np.int64)).among(np.array([1])).tolist() == [False]
