"""A sequence of events as SQL: for each step a set of instants at which the chain can end.

An event continues the chain when the latest end before it is near enough (an ``ASOF`` join: one
sort of both sides, however many events a person has); where a step may follow at any distance, the
earliest end alone decides. Frame and spans bound from below how old an event of each step can be.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from manta.rules.meaning import TICK, frame_range, plus
from manta.rules.nodes import Sequence, Step
from manta.rules.sql_events import Source
from manta.rules.sql_tests import Sql

AddSet = Callable[[Sql], str]


def sequence(rule: Sequence, source: Source, universe: str | None, add_set: AddSet) -> Sql:
    """The people, or people and keys, with such a sequence; each once."""
    lows, ends = _earliest(rule, source.now), ""
    present = rule.present
    for place, step in enumerate(present):
        times = _times(step, source, universe, lows[place])
        if place:
            times = _continued(step, source, times, ends)
        following = rule.steps[place + 1] if place + 1 < len(present) else None
        if following is not None and following.within is None:
            ids = ", ".join(source.ids)
            times = (
                Sql(f"SELECT {ids}, min(moment) AS moment FROM (")
                + times
                + Sql(f") GROUP BY {ids}")
            )
        ends = add_set(times)
    return _complete(rule, source, universe, ends)


def _earliest(rule: Sequence, now: datetime) -> list[datetime | None]:
    """The first instant of each step that can still be part of a sequence within the frame."""
    low, _ = frame_range(rule.within, now)
    lows = [low]
    for step in reversed(rule.steps[1:]):
        low = plus(low, -step.within.delta) if low and step.within else None
        lows.insert(0, low)
    return lows


def _times(step: Step, source: Source, universe: str | None, low: datetime | None) -> Sql:
    times = Sql(f"SELECT {source.named('e')}, e.occurred_at AS moment")
    times += source.matching(step.happening, universe)
    return times if low is None else times + Sql(" AND e.occurred_at >= ?::TIMESTAMP", low)


def _continued(step: Step, source: Source, times: Sql, ends: str) -> Sql:
    how = "JOIN" if step.within is None else "ASOF JOIN"
    found = Sql(f"SELECT {source.named('c')}, c.moment FROM (") + times
    found += Sql(f") c {how} {ends} b ON {source.same('b', 'c')} AND c.moment > b.moment")
    if step.within is None:
        return found
    return found + Sql(" WHERE c.moment <= ") + _later("b.moment", step.within.delta)


def _complete(rule: Sequence, source: Source, universe: str | None, ends: str) -> Sql:
    low, high = frame_range(rule.within, source.now)
    moment, absent = Sql("b.moment"), rule.absent
    found = Sql(f"SELECT DISTINCT {source.named('b')} FROM {ends} b")
    if absent is None or absent.within is None:
        found += Sql(" WHERE ")
    else:
        moment = _later("b.moment", absent.within.delta)
        earliest = None if low is None else plus(low, -absent.within.delta)
        found += Sql(" ASOF LEFT JOIN (") + _times(absent, source, universe, earliest)
        found += Sql(f") a ON {source.same('a', 'b')} AND b.moment < a.moment")
        found += Sql(" WHERE (a.moment IS NULL OR a.moment > ")
        found += moment + Sql(") AND ")
    found += moment + Sql(" < ?::TIMESTAMP", high)
    return found if low is None else found + Sql(" AND ") + moment + Sql(" >= ?::TIMESTAMP", low)


def _later(column: str, delta: timedelta) -> Sql:
    return Sql(f"{column} + to_microseconds(?::BIGINT)", delta // TICK)
