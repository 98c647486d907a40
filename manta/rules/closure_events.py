"""The conditions on events as Python functions, and the instants at which time moves them.

A condition reads the rows of a person latest first, so that a window ends the walk where it begins.
``flips`` name every instant at which an event begins to count, enters or leaves a frame.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from manta.rules.meaning import SETTLING, frame_range, micros, plus, zone_of
from manta.rules.nodes import Event, EventTime, LastMessages
from manta.rules.person import EventRow, Person
from manta.rules.terms import Filter, Frame, Happening, Operator, Span
from manta.rules.values import date_flips, moves, property_reader, value_test
from manta.schema import AttributeType

Holds = Callable[[Person, datetime], bool]
Flips = Callable[[Person, datetime], Iterator[datetime]]
Leaf = tuple[Holds, Flips | None]
RowTest = Callable[[EventRow, datetime], bool]


class Bounds:
    """[low, high) of a frame at now. Many people are looked at with one now: it is kept."""

    __slots__ = ("_frame", "_kept")

    def __init__(self, frame: Frame | None) -> None:
        self._frame = frame
        self._kept: tuple[datetime, datetime, datetime] = (datetime.min,) * 3

    def __call__(self, now: datetime) -> tuple[datetime, datetime, datetime]:
        """(now, low, high), as one value, so that threads may share the bounds."""
        kept = self._kept
        if kept[0] != now:
            low, high = frame_range(self._frame, now)
            self._kept = kept = (now, low or datetime.min, high)
        return kept


def row_test(where: tuple[Filter, ...], zone: str) -> RowTest | None:
    """All property filters of one row; the days of their dates are the workspace zone's."""
    if not where:
        return None
    own = zone_of(None, zone)
    parts = []
    for one in where:
        is_set = one.test.operator is Operator.IS_SET
        read = property_reader(one.property, None if is_set else one.test.type)
        parts.append((read, value_test(one.test)))
    if len(parts) == 1:
        ((only_read, only_test),) = parts
        return lambda row, now: only_test(only_read(row), own, now)
    return lambda row, now: all(test(read(row), own, now) for read, test in parts)


def _rows(happening: Happening, zone: str) -> Callable[[Person, datetime], Iterator[EventRow]]:
    """The rows of a happening by now, latest first."""
    type_, test, bounds = (
        happening.type,
        row_test(happening.where, zone),
        Bounds(happening.within),
    )

    def rows(person: Person, now: datetime) -> Iterator[EventRow]:
        _, low, high = bounds(now)
        for row in reversed(person.events.get(type_, ())):
            if row[0] >= high:
                continue
            if row[0] < low:
                return
            if test is None or test(row, now):
                yield row

    return rows


def event(rule: Event, zone: str) -> Leaf:
    rows, type_, for_none = _rows(rule.happening, zone), rule.happening.type, rule.holds_for_none
    comparison = rule.comparison
    if rule.sum_of is not None:
        read = property_reader(rule.sum_of, AttributeType.NUMBER)
        wanted = micros(comparison.value)
        assert wanted is not None

        def total(person: Person, now: datetime) -> bool:
            return compare(sum(micros(read(row)) or 0 for row in rows(person, now)), wanted)

        compare = comparison.function
        return total, _happening_flips(rule.happening, zone)
    if comparison.operator == "at_least" and comparison.value == 1:

        def once(person: Person, now: datetime) -> bool:
            if type_ not in person.events:
                return False
            return next(rows(person, now), None) is not None

        return once, _happening_flips(rule.happening, zone)

    def counted(person: Person, now: datetime) -> bool:
        if type_ not in person.events:
            return for_none
        return comparison.holds(sum(1 for _ in rows(person, now)))

    return counted, _happening_flips(rule.happening, zone)


def event_time(rule: EventTime, zone: str) -> Leaf:
    bounds = Bounds(rule.happening.within)
    ever = Happening(rule.happening.type, rule.happening.where)
    rows = _rows(ever, zone)

    def holds(person: Person, now: datetime) -> bool:
        latest_first = rows(person, now)
        chosen = next(latest_first, None)
        if chosen is None:
            return False
        if rule.first:
            for row in latest_first:
                chosen = row
        _, low, high = bounds(now)
        return low <= chosen[0] < high

    return holds, _happening_flips(rule.happening, zone)


def width_of(frame: Frame | None) -> timedelta | None:
    """How long after an event a frame that goes back from now lets it in or out."""
    return frame.value.delta if frame is not None and isinstance(frame.value, Span) else None


def _happening_flips(happening: Happening, zone: str) -> Flips:
    """A row moves an answer when it begins to count, and when it enters or leaves the frame.

    Rows are in order of time, so the first of each kind gives the least instant.
    """
    width = width_of(happening.within)
    moving = [one for one in happening.where if moves(one.test)]
    if moving:
        return _moving_flips(happening, moving, width, zone)
    test = row_test(happening.where, zone)

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        rows = person.events.get(happening.type, ())
        if not rows:
            return
        if rows[-1][0] > now:
            yield from next_after(rows, now)
        if width is not None:
            for place in range(_first_after(rows, now, width), len(rows)):
                if test is None or test(rows[place], now):
                    yield plus(rows[place][0], width)
                    return

    return flips


def _moving_flips(
    happening: Happening, moving: list[Filter], width: timedelta | None, zone: str
) -> Flips:
    """Where time moves filters too: every row counts, one that fails now may pass later."""
    readers = [(one.test, property_reader(one.property, AttributeType.DATE)) for one in moving]
    own = zone_of(None, zone)

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        for row in person.events.get(happening.type, ()):
            yield row[0]
            if width is not None:
                yield plus(row[0], width)
            for date_test, read in readers:
                value = read(row)
                if value is not None:
                    yield from date_flips(date_test, value, own, now)

    return flips


def _occurred_at(row: EventRow) -> datetime:
    return row[0]


def _first_after(rows: Sequence[EventRow], now: datetime, width: timedelta) -> int:
    """The place of the first row that is still to leave (or enter) a frame of this width."""
    return bisect_right(rows, plus(now, -width), key=_occurred_at)


def next_after(rows: Sequence[EventRow], now: datetime) -> Iterator[datetime]:
    """When the next of the rows begins to count, if one lies after now."""
    if rows and rows[-1][0] > now:
        yield rows[bisect_right(rows, now, key=_occurred_at)][0]


def last_messages(rule: LastMessages, zone: str) -> Leaf:
    kinds = ("marketing", "transactional") if rule.kind == "any" else (rule.kind,)
    acts = {"opened": ("opened",), "clicked": ("clicked",), "ignored": ("opened", "clicked")}
    types = acts[rule.were]
    ignored, number = rule.were == "ignored", rule.number

    def last(person: Person, now: datetime) -> list[EventRow]:
        settled, found = now - SETTLING, []
        for row in reversed(person.sent):
            if row[0] <= settled and row[3] in kinds:
                found.append(row)
                if len(found) == number:
                    break
        return found

    def holds(person: Person, now: datetime) -> bool:
        sent, first_acts = last(person, now), person.first_acts
        count = 0
        for row in sent:
            for type_ in types:
                first = first_acts.get((type_, row[2]))
                if first is not None and first <= now:
                    count += 1
                    break
        return rule.holds(len(sent), len(sent) - count if ignored else count)

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        """When the next message settles, and acts that are still to come."""
        unsettled = bisect_right(person.sent, now - SETTLING, key=_occurred_at)
        if unsettled < len(person.sent):
            yield plus(person.sent[unsettled][0], SETTLING)
        for type_ in types:
            yield from next_after(person.events.get(type_, ()), now)

    return holds, flips
