"""Next flips: against a plain dict, and their size and speed with a million people."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from manta.segments.flips import NEVER, Flips, micros_of

NOW = datetime(2026, 3, 1)


def at(minutes: int) -> datetime:
    return NOW + timedelta(minutes=minutes)


class Plain:
    """The same, slowly."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}

    def update(self, ids: list[int], moments: list[int], now: int) -> None:
        for id, moment in zip(ids, moments, strict=True):
            known = self.at.get(id, NEVER)
            self.at[id] = min(known if known > now else NEVER, moment)

    def include(self, ids: list[int], moments: list[int]) -> None:
        for id, moment in zip(ids, moments, strict=True):
            self.at[id] = min(self.at.get(id, NEVER), moment)


IDS, MOMENTS = st.integers(1, 30), st.one_of(st.integers(0, 50), st.none())
ROWS = st.dictionaries(IDS, MOMENTS, max_size=12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), ROWS, st.integers(0, 50)),
        st.tuples(st.just("include"), ROWS, st.just(0)),
        st.tuples(st.just("forget"), ROWS, st.just(0)),
        st.tuples(st.just("passed"), st.just({}), st.integers(0, 50)),
    ),
    max_size=12,
)


@given(STEPS, st.integers(0, 50))
def test_it_holds_what_a_dict_would(steps, now):
    flips, plain = Flips(), Plain()
    for what, rows, minute in steps:
        ids = np.array(list(rows), np.int64)
        moments = [NEVER if m is None else micros_of(at(m)) for m in rows.values()]
        if what == "update":
            flips.update(ids, np.array(moments, np.int64), at(minute))
            plain.update(list(rows), moments, micros_of(at(minute)))
        elif what == "include":
            flips.include(ids, np.array(moments, np.int64))
            plain.include(list(rows), moments)
        elif what == "forget":
            flips.forget(ids)
            for id in rows:
                plain.at.pop(id, None)
        else:
            flips.passed(at(minute))
            plain.at = {i: m for i, m in plain.at.items() if m > micros_of(at(minute))}
    held = {id: moment for id, moment in plain.at.items() if moment != NEVER}
    assert len(flips) == len(held)
    earliest = flips.earliest()
    assert (None if earliest is None else micros_of(earliest)) == min(held.values(), default=None)
    due = {id for id, moment in held.items() if moment <= micros_of(at(now))}
    assert set(flips.due(at(now)).tolist()) == due
    asked = np.arange(1, 31)
    assert set(asked[flips.is_due(asked, at(now))].tolist()) == due


def test_a_million_people_take_16_bytes_each_and_small_batches_a_moment():
    rng = np.random.default_rng(1)
    ids = np.unique(rng.integers(1, 1 << 62, 1_000_000))
    flips = Flips()
    flips.include(ids, rng.integers(micros_of(NOW), micros_of(at(10**6)), len(ids)))
    assert flips.nbytes == 16 * len(ids)
    some = rng.choice(ids, 100, replace=False)
    moments = np.full(100, micros_of(at(5)))

    def fastest_ms(work) -> float:
        took = []
        for _ in range(7):
            began = time.process_time()
            work()
            took.append(time.process_time() - began)
        return min(took) * 1e3

    took = {
        "update": fastest_ms(lambda: flips.update(some, moments, NOW)),
        "earliest": fastest_ms(flips.earliest),
        "due": fastest_ms(lambda: flips.due(NOW)),
        "forget": fastest_ms(lambda: flips.forget(some)),
    }
    assert max(took.values()) < 5, took  # under 1 on a quiet machine
