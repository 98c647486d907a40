"""A rule as a Python function of one person: for the few people that an event touches.

``compile_closure`` turns the tree into nested functions once; each call then looks only at the
values it was given. It says the same of a person as the SQL of ``manta.rules.sql`` does.

``flips_at`` answers when to look again: a **lower bound**, later than now, of the instant at which
time alone could change the answer. Too early costs one evaluation; too late would be a bug, so each
condition names every instant at which it could move, and a combination takes the least of its
parts. ``None`` means that time alone never changes the answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from manta.rules.meaning import (
    SETTLING,
    bucket_of,
    email_domain,
    frame_range,
    micros,
    plus,
    zone_of,
)
from manta.rules.nodes import (
    BUILT_IN,
    All,
    AnyOf,
    Attribute,
    Bucket,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    Filter,
    Frame,
    Happening,
    LastMessages,
    Member,
    Not,
    Operator,
    Rule,
    Span,
    Suppressed,
)
from manta.rules.values import date_flips, moves, property_reader, value_test
from manta.schema import ATTRIBUTE_PREFIX, AttributeType


class EventRow(NamedTuple):
    """One event of a person, without its type."""

    occurred_at: datetime
    campaign_id: int | None = None
    message_key: int | None = None
    item: str | None = None
    amount: float | None = None
    properties: str | None = None


class Suppression(NamedTuple):
    reason: str
    expires_at: datetime | None


@dataclass(frozen=True)
class Person:
    """What a rule may look at. ``profile`` maps columns of ``profiles`` to values; one that is
    absent is missing. ``events`` holds by type what ``loading`` gathered, earliest first."""

    subscriber_id: int
    profile: Mapping[str, Any]
    events: Mapping[str, Sequence[EventRow]] = field(default_factory=dict)
    consents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    memberships: frozenset[int] = frozenset()
    suppressions: Sequence[Suppression] = ()  # of the e-mail address

    @cached_property
    def sent(self) -> list[EventRow]:
        """Messages sent, in the order in which "the last N" counts back."""
        return sorted(self.events.get("sent", ()), key=_sent_order)

    @cached_property
    def first_acts(self) -> dict[tuple[str, int | None], datetime]:
        """When a message was first opened or clicked."""
        first: dict[tuple[str, int | None], datetime] = {}
        for type_ in ("clicked", "opened"):
            for row in self.events.get(type_, ()):
                if row.message_key is not None:
                    first.setdefault((type_, row.message_key), row.occurred_at)
        return first


Holds = Callable[[Person, datetime], bool]
Flips = Callable[[Person, datetime], Iterator[datetime]]


@dataclass(frozen=True)
class Closure:
    """A compiled rule: call it with a person and now, ask it when to ask again."""

    _holds: Holds
    _flips: tuple[Flips, ...]

    def __call__(self, person: Person, now: datetime) -> bool:
        return self._holds(person, now)

    def flips_at(self, person: Person, now: datetime) -> datetime | None:
        """The earliest instant after ``now`` at which time alone could change the answer."""
        later = (moment for flips in self._flips for moment in flips(person, now) if moment > now)
        return min(later, default=None)


def compile_closure(rule: Rule, zone: str = "UTC") -> Closure:
    """The rule as a function; ``zone`` is the workspace's, for people without one of their own."""
    flips: list[Flips] = []
    return Closure(_compile(rule, zone, flips), tuple(flips))


def _compile(rule: Rule, zone: str, flips: list[Flips]) -> Holds:
    if isinstance(rule, All | AnyOf | ExactlyOne):
        return _group(rule, tuple(_compile(child, zone, flips) for child in rule.children))
    if isinstance(rule, Not):
        inner = _compile(rule.child, zone, flips)
        return lambda person, now: not inner(person, now)
    holds, moves = _LEAVES[type(rule)](rule, zone)
    if moves is not None:
        flips.append(moves)
    return holds


def _group(rule: Rule, parts: tuple[Holds, ...]) -> Holds:
    if isinstance(rule, All):

        def every(person: Person, now: datetime) -> bool:
            for part in parts:  # noqa: SIM110 - a generator would double the cost
                if not part(person, now):
                    return False
            return True

        return every
    if isinstance(rule, AnyOf):

        def some(person: Person, now: datetime) -> bool:
            for part in parts:  # noqa: SIM110
                if part(person, now):
                    return True
            return False

        return some
    return lambda person, now: sum(part(person, now) for part in parts) == 1


# -- conditions on the person ----------------------------------------------------------------------

Leaf = tuple[Holds, Flips | None]


def _reader(name: str) -> Callable[[Person], Any]:
    if name == "email_domain":
        return lambda person: email_domain(person.profile.get("email"))
    column = name if name in BUILT_IN else ATTRIBUTE_PREFIX + name
    return lambda person: person.profile.get(column)


def _attribute(rule: Attribute, zone: str) -> Leaf:
    read, test = _reader(rule.name), value_test(rule.test)
    if rule.test.type is not AttributeType.DATE:
        no_zone = zone_of(None, zone)
        return lambda person, now: test(read(person), no_zone, now), None

    def holds(person: Person, now: datetime) -> bool:
        return test(read(person), zone_of(person.profile.get("time_zone"), zone), now)

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        value = read(person)
        if value is not None:
            own = zone_of(person.profile.get("time_zone"), zone)
            yield from date_flips(rule.test, value, own, now)

    return holds, flips if moves(rule.test) else None


def _consent(rule: Consent, zone: str) -> Leaf:
    key, status = (rule.channel, rule.topic), rule.status
    return lambda person, now: person.consents.get(key) == status, None


def _member(rule: Member, zone: str) -> Leaf:
    return lambda person, now: rule.segment in person.memberships, None


def _bucket(rule: Bucket, zone: str) -> Leaf:
    start, end, salt = rule.start, rule.end, rule.salt
    return lambda person, now: start <= bucket_of(salt, person.subscriber_id) < end, None


def _suppressed(rule: Suppressed, zone: str) -> Leaf:
    def holds(person: Person, now: datetime) -> bool:
        return any(
            (expires_at is None or expires_at > now) and rule.reason in (None, reason)
            for reason, expires_at in person.suppressions
        )

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        for _, expires_at in person.suppressions:
            if expires_at is not None:
                yield expires_at

    return holds, flips


# -- conditions on events --------------------------------------------------------------------------

RowTest = Callable[[EventRow, datetime], bool]


class _Bounds:
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


def _row_test(where: tuple[Filter, ...], zone: str) -> RowTest | None:
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
        _row_test(happening.where, zone),
        _Bounds(happening.within),
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


def _event(rule: Event, zone: str) -> Leaf:
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


def _event_time(rule: EventTime, zone: str) -> Leaf:
    bounds = _Bounds(rule.happening.within)
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


def _happening_flips(happening: Happening, zone: str) -> Flips:
    """A row moves an answer when it begins to count, and when it enters or leaves the frame.

    Rows are in order of time, so the first of each kind gives the least instant.
    """
    frame = happening.within
    width = frame.value.delta if frame is not None and isinstance(frame.value, Span) else None
    moving = [one for one in happening.where if moves(one.test)]
    if moving:
        return _moving_flips(happening, moving, width, zone)
    test = _row_test(happening.where, zone)

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        rows = person.events.get(happening.type, ())
        if not rows:
            return
        yield from _next_after(rows, now)
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


def _next_after(rows: Sequence[EventRow], now: datetime) -> Iterator[datetime]:
    """When the next of the rows begins to count, if one lies after now."""
    if rows and rows[-1][0] > now:
        yield rows[bisect_right(rows, now, key=_occurred_at)][0]


def _last_messages(rule: LastMessages, zone: str) -> Leaf:
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
            yield from _next_after(person.events.get(type_, ()), now)

    return holds, flips


def _sent_order(row: EventRow) -> tuple[datetime, bool, int]:
    return row[0], row[2] is not None, row[2] or 0


_LEAVES: dict[type[Rule], Callable[[Any, str], Leaf]] = {
    Attribute: _attribute,
    Consent: _consent,
    Member: _member,
    Bucket: _bucket,
    Suppressed: _suppressed,
    Event: _event,
    EventTime: _event_time,
    LastMessages: _last_messages,
}
