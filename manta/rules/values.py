"""The tests of single values as Python functions, and the instants at which time moves them.

The counterpart of ``sql_tests``. A date test of calendar days moves only where the local date
changes; ``day_starts`` names those instants, also where a clock change falls on midnight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import re2

from manta.rules.meaning import (
    ONE_DAY,
    anniversary_in,
    as_instant,
    as_number,
    as_text,
    as_texts,
    by_days,
    day_of,
    day_offsets,
    day_range,
    day_starts,
    fold,
    instant_range,
    local_day,
    next_anniversary,
    plus,
    property_value,
)
from manta.rules.terms import COMPARISONS, Operator, Property, Span, Test
from manta.schema import AttributeType

ValueTest = Callable[[Any, ZoneInfo, datetime], bool]


def value_test(test: Test) -> ValueTest:
    """A test of one value, its zone and now; what is missing fails it, negated it passes."""
    if test.operator is Operator.IS_SET:
        wanted = not test.negated
        return lambda value, zone, now: (value is not None) is wanted
    positive = _VALUE_TESTS[test.type](test)
    if test.negated:
        return lambda value, zone, now: value is None or not positive(value, zone, now)
    return lambda value, zone, now: value is not None and positive(value, zone, now)


def _string(test: Test) -> ValueTest:
    operator, value = test.operator, test.value
    if operator is Operator.REGEX:
        options = re2.Options()
        options.log_errors = False
        pattern = re2.compile(value, options)
        return lambda text, zone, now: pattern.search(text) is not None
    if operator is Operator.IN:
        wanted = frozenset(fold(one) for one in value)
        return lambda text, zone, now: fold(text) in wanted
    folded = fold(value)
    if operator is Operator.EQUALS:
        return lambda text, zone, now: fold(text) == folded
    if operator is Operator.CONTAINS:
        return lambda text, zone, now: folded in fold(text)
    if operator is Operator.STARTS_WITH:
        return lambda text, zone, now: fold(text).startswith(folded)
    return lambda text, zone, now: fold(text).endswith(folded)


def _number(test: Test) -> ValueTest:
    operator, value = test.operator, test.value
    if operator is Operator.BETWEEN:
        low, high = value
        return lambda number, zone, now: low <= number <= high
    if operator is Operator.IN:
        wanted = frozenset(value)
        return lambda number, zone, now: number in wanted
    compare = COMPARISONS[operator.value]
    return lambda number, zone, now: number == number and compare(number, value)


def _boolean(test: Test) -> ValueTest:
    return lambda value, zone, now: value is test.value


def _list(test: Test) -> ValueTest:
    if test.operator is Operator.LENGTH:
        return lambda texts, zone, now: test.value.holds(sum(one is not None for one in texts))
    values = (test.value,) if isinstance(test.value, str) else test.value
    wanted = frozenset(fold(one) for one in values)

    def found(texts: Sequence[str | None]) -> frozenset[str]:
        return frozenset(fold(one) for one in texts if one is not None)

    if test.operator is Operator.CONTAINS_ALL:
        return lambda texts, zone, now: wanted <= found(texts)
    return lambda texts, zone, now: not wanted.isdisjoint(found(texts))


def _date(test: Test) -> ValueTest:
    if test.operator in _ANNIVERSARIES:
        first, last = _anniversary_distance(test)

        def soon(value: datetime, zone: ZoneInfo, now: datetime) -> bool:
            today = local_day(now, zone)
            return first <= (_coming(day_of(value, zone), today, first) - today).days <= last

        return soon
    if not by_days(test):

        def within(value: datetime, zone: ZoneInfo, now: datetime) -> bool:
            low, high = instant_range(test, now)
            return (low is None or low <= value) and (high is None or value < high)

        return within
    offsets = day_offsets(test)
    if offsets is None:
        low_day, high_day = day_range(test)

        def on_days(value: datetime, zone: ZoneInfo, now: datetime) -> bool:
            day = day_of(value, zone)
            return (low_day is None or low_day <= day) and (high_day is None or day <= high_day)

        return on_days
    first_offset, last_offset = offsets

    def in_days(value: datetime, zone: ZoneInfo, now: datetime) -> bool:
        distance = (day_of(value, zone) - local_day(now, zone)).days
        return (first_offset is None or first_offset <= distance) and (
            last_offset is None or distance <= last_offset
        )

    return in_days


_VALUE_TESTS: dict[AttributeType, Callable[[Test], ValueTest]] = {
    AttributeType.STRING: _string,
    AttributeType.NUMBER: _number,
    AttributeType.BOOLEAN: _boolean,
    AttributeType.DATE: _date,
    AttributeType.LIST: _list,
}
_ANNIVERSARIES = (Operator.ANNIVERSARY_TODAY, Operator.ANNIVERSARY_IN_THE_NEXT)


def _anniversary_distance(test: Test) -> tuple[int, int]:
    return (0, 0) if test.operator is Operator.ANNIVERSARY_TODAY else (1, test.value.days)


def _coming(day: date, today: date, first: int) -> date:
    """The first anniversary at least ``first`` days from today."""
    return next_anniversary(day, today + first * ONE_DAY)


# -- when time moves a date test -------------------------------------------------------------------


def moves(test: Test) -> bool:
    """Whether time alone can change the answer of a test."""
    return isinstance(test.value, Span) or test.operator in _ANNIVERSARIES


def date_flips(test: Test, value: datetime, zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    """Instants, some of them past, at which a moving date test of this value may change.

    Of calendar days only the next is named: the days after it begin later.
    """
    if not by_days(test):
        yield value
        delta = test.value.delta
        yield plus(value, -delta if test.operator is Operator.IN_THE_NEXT else delta)
        return
    day, today = day_of(value, zone), local_day(now, zone)
    turns = _anniversary_turns if test.operator in _ANNIVERSARIES else _day_turns
    for turn in turns(test, day, today):
        # Today's own start lies ahead only where a clock change repeats it.
        ahead = [moment for moment in day_starts(turn, zone, now) if moment > now]
        if ahead:
            yield from ahead
            return


@lru_cache(maxsize=16_384)
def _day_turns(test: Test, day: date, today: date) -> tuple[date, ...]:
    """The days from today on at which the answer may change, in order."""
    days = test.value.days
    back = -days if test.operator is Operator.IN_THE_NEXT else days
    turns = sorted(day.toordinal() + shift for shift in (0, back))
    last = date.max.toordinal()
    return tuple(date.fromordinal(one) for one in turns if today.toordinal() <= one <= last)


@lru_cache(maxsize=16_384)
def _anniversary_turns(test: Test, day: date, today: date) -> tuple[date, ...]:
    first, last = _anniversary_distance(test)
    turns: list[date] = []
    for year in (today.year, today.year + 1, today.year + 2):
        anniversary = anniversary_in(day, year)
        turns += (anniversary - last * ONE_DAY, anniversary + (1 - first) * ONE_DAY)
    return tuple(sorted(turn for turn in turns if turn >= today))


# -- properties of events --------------------------------------------------------------------------

# Where a column stands in closure.EventRow.
_COLUMN_PLACES = {"campaign_id": 1, "item": 3, "amount": 4}
_PROPERTIES = 5
_AS_TYPE: dict[AttributeType, Callable[[Any], Any]] = {
    AttributeType.STRING: as_text,
    AttributeType.NUMBER: as_number,
    AttributeType.BOOLEAN: lambda value: value if isinstance(value, bool) else None,
    AttributeType.DATE: as_instant,
    AttributeType.LIST: as_texts,
}


def property_reader(property_: Property, type_: AttributeType | None) -> Callable[[Any], Any]:
    """A function from an event row to the property as that type (``None``: as it is)."""
    if property_.column is not None:
        place = _COLUMN_PLACES[property_.column]
        return lambda row: row[place]
    path = property_.path[1:]
    if type_ is None:
        return lambda row: property_value(row[_PROPERTIES], path)
    convert = _AS_TYPE[type_]
    return lambda row: convert(property_value(row[_PROPERTIES], path))
