"""A sequence of events as a Python function of one person.

One walk over the events of each step finds when the chain up to it can end: an event continues the
chain when the latest end before it is near enough, for then no earlier one has to be tried. The
sequence is complete at the end of its last event, or where that has to be absent, when it has been
waited for in vain.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime, timedelta

from manta.rules.closure_events import Bounds, Flips, Leaf, RowTest, next_after, row_test, width_of
from manta.rules.meaning import plus, zone_of
from manta.rules.nodes import Sequence, Step
from manta.rules.person import Person
from manta.rules.values import date_flips, moves, property_reader
from manta.schema import AttributeType

NO_TIME = timedelta(0)


class _Stage:
    """A step, made ready to be looked for."""

    __slots__ = ("span", "test", "type")

    def __init__(self, step: Step, zone: str) -> None:
        self.type = step.happening.type
        self.test: RowTest | None = row_test(step.happening.where, zone)
        self.span = step.within.delta if step.within is not None else None

    def times(self, person: Person, now: datetime) -> Iterator[datetime]:
        """When it happened, by now, in order of time."""
        for row in person.events.get(self.type, ()):
            if row[0] > now:
                return
            if self.test is None or self.test(row, now):
                yield row[0]


def sequence(rule: Sequence, zone: str) -> Leaf:
    stages = [_Stage(step, zone) for step in rule.present]
    absent = _Stage(rule.absent, zone) if rule.absent else None
    bounds, width = Bounds(rule.within), width_of(rule.within)
    types = sorted({step.happening.type for step in rule.steps})

    def completions(person: Person, now: datetime) -> Iterator[datetime]:
        """When it is complete, in order of time; with an absent step also after now."""
        ends = _ends(stages, person, now)
        return iter(ends) if absent is None else _waits(ends, absent, person, now)

    last, wait = stages[-1].type, (absent.span if absent else None) or NO_TIME

    def holds(person: Person, now: datetime) -> bool:
        _, low, high = bounds(now)
        rows = person.events.get(last)
        if not rows or plus(rows[-1][0], wait) < low:
            return False
        return any(low <= moment < high for moment in completions(person, now))

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        for type_ in types:
            rows = person.events.get(type_)
            if rows and rows[-1][0] > now:
                yield from next_after(rows, now)
        if width is None and absent is None:
            return  # what is complete stays so
        for moment in completions(person, now):
            yield moment
            if width is not None:
                yield plus(moment, width)

    moving = any(moves(one.test) for step in rule.steps for one in step.happening.where)
    return holds, _moving_flips(rule, zone) if moving else flips


def _ends(stages: list[_Stage], person: Person, now: datetime) -> list[datetime]:
    """When chains of all the stages end, in order of time."""
    ends: list[datetime] | None = None
    for stage in stages:
        times = stage.times(person, now)
        ends = list(times) if ends is None else _continued(ends, times, stage.span)
        if not ends:
            return []
    return ends or []


def _continued(
    ends: list[datetime], times: Iterator[datetime], span: timedelta | None
) -> list[datetime]:
    found, before = [], 0
    for moment in times:
        while before < len(ends) and ends[before] < moment:
            before += 1
        if before and (span is None or moment - ends[before - 1] <= span):
            found.append(moment)
    return found


def _waits(
    ends: list[datetime], absent: _Stage, person: Person, now: datetime
) -> Iterator[datetime]:
    """When each wait that nothing has ended yet is over."""
    if not ends:
        return
    assert absent.span is not None
    times = list(absent.times(person, now))
    for end in ends:
        over, place = plus(end, absent.span), bisect_right(times, end)
        if place == len(times) or times[place] > over:
            yield over


def _moving_flips(rule: Sequence, zone: str) -> Flips:
    """Where time moves filters, every row may be part of a chain later: each counts."""
    wait = rule.absent.within.delta if rule.absent and rule.absent.within else NO_TIME
    width = width_of(rule.within) or NO_TIME
    own = zone_of(None, zone)
    readers = [
        (step.happening.type, one.test, property_reader(one.property, AttributeType.DATE))
        for step in rule.steps
        for one in step.happening.where
        if moves(one.test)
    ]

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        for type_ in {step.happening.type for step in rule.steps}:
            for row in person.events.get(type_, ()):
                yield from (row[0], plus(row[0], wait), plus(row[0], wait + width))
        for type_, test, read in readers:
            for row in person.events.get(type_, ()):
                value = read(row)
                if value is not None:
                    yield from date_flips(test, value, own, now)

    return flips
