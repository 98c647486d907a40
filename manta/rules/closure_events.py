"""The conditions on events as Python functions, and the instants at which time moves them.

A condition reads the rows of a person latest first, so that a window ends the walk where it begins.
``flips`` name every instant at which an event begins to count, enters or leaves a frame. What is
kept of events that have left memory (``Person.past``) counts for the conditions that it serves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from manta.rules.kept import KeptSum, kept_of, overlaps
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


def _sums(rule: Event | EventTime, zone: str) -> Callable[[Person, datetime], Sequence[KeptSum]]:
    """What is kept of the rule's events that have left memory, in whatever frame."""
    kept, test = kept_of(rule), row_test(rule.happening.where, zone)
    if kept is None:
        return lambda person, now: ()

    def sums(person: Person, now: datetime) -> Sequence[KeptSum]:
        found = person.past.get(kept, ())
        if not found or test is None:
            return found
        return [one for one in found if test(EventRow(one.first_at, item=one.item), now)]

    return sums


def _past(rule: Event | EventTime, zone: str) -> Callable[[Person, datetime], Sequence[KeptSum]]:
    """Of these the ones that count."""
    sums = _sums(rule, zone)

    def counting(person: Person, now: datetime) -> Sequence[KeptSum]:
        found = sums(person, now)
        if not found:
            return ()
        low, high = overlaps(rule, now)
        return [one for one in found if one.first_at < high and one.last_at >= low]

    return counting


def event(rule: Event, zone: str) -> Leaf:
    rows, past = _rows(rule.happening, zone), _past(rule, zone)
    type_, for_none = rule.happening.type, rule.holds_for_none
    comparison, flips = rule.comparison, _happening_flips(rule, zone)
    if rule.sum_of is not None:
        read = property_reader(rule.sum_of, AttributeType.NUMBER)
        wanted = micros(comparison.value)
        assert wanted is not None

        def total(person: Person, now: datetime) -> bool:
            amount = sum(micros(read(row)) or 0 for row in rows(person, now))
            return compare(amount + sum(one.micros for one in past(person, now)), wanted)

        compare = comparison.function
        return total, flips
    if comparison.operator == "at_least" and comparison.value == 1:

        def once(person: Person, now: datetime) -> bool:
            if type_ in person.events and next(rows(person, now), None) is not None:
                return True
            return bool(past(person, now))

        return once, flips

    def counted(person: Person, now: datetime) -> bool:
        if type_ not in person.events and not person.past:
            return for_none
        count = sum(1 for _ in rows(person, now))
        return comparison.holds(count + sum(one.events for one in past(person, now)))

    return counted, flips


def event_time(rule: EventTime, zone: str) -> Leaf:
    bounds = Bounds(rule.happening.within)
    ever = Happening(rule.happening.type, rule.happening.where)
    rows, past = _rows(ever, zone), _past(rule, zone)

    def time(person: Person, now: datetime) -> datetime | None:
        """What is kept of the past lies before all of memory."""
        latest_first, sums = rows(person, now), past(person, now)
        if rule.first and sums:
            return min(one.first_at for one in sums)
        chosen = next(latest_first, None)
        if chosen is None:
            return max((one.last_at for one in sums), default=None)
        if rule.first:
            for row in latest_first:
                chosen = row
        return chosen[0]

    def holds(person: Person, now: datetime) -> bool:
        chosen = time(person, now)
        if chosen is None:
            return False
        _, low, high = bounds(now)
        return low <= chosen < high

    return holds, _happening_flips(rule, zone)


def width_of(frame: Frame | None) -> timedelta | None:
    """How long after an event a frame that goes back from now lets it in or out."""
    return frame.value.delta if frame is not None and isinstance(frame.value, Span) else None


def _happening_flips(rule: Event | EventTime, zone: str) -> Flips:
    """What the rows of memory move, and the first and last times that are kept of the others."""
    happening, sums = rule.happening, _sums(rule, zone)
    of_rows, width = _row_flips(happening, zone), width_of(happening.within)
    if kept_of(rule) is None or width is None:
        return of_rows

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        yield from of_rows(person, now)
        for one in sums(person, now):
            yield plus(one.first_at, width)
            yield plus(one.last_at, width)

    return flips


def _row_flips(happening: Happening, zone: str) -> Flips:
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
