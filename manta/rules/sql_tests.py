"""The tests of single values as SQL: operators on text, numbers, dates and lists.

A test is a boolean that may be NULL where the value is missing; NULL counts as false, and a
negation takes that into account before it turns it (``negation``). ``AND`` and ``OR`` of such
booleans need no more care: they are monotone in NULL < true.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manta.rules.meaning import (
    by_days,
    day_offsets,
    day_range,
    fold,
    instant_range,
    local_day,
    zone_of,
)
from manta.rules.terms import Filter, Operator, Property, Test
from manta.schema import AttributeType


class Sql:
    """A piece of SQL with its parameters in order; ``today`` when it needs the zones joined."""

    __slots__ = ("params", "text", "today")

    def __init__(self, text: str, *params: Any, today: bool = False) -> None:
        self.text = text
        self.params: tuple[Any, ...] = params
        self.today = today

    def __add__(self, other: Sql) -> Sql:
        return Sql(
            self.text + other.text,
            *self.params,
            *other.params,
            today=self.today or other.today,
        )


def join(separator: str, pieces: Iterable[Sql]) -> Sql:
    pieces = list(pieces)
    return Sql(
        separator.join(piece.text for piece in pieces),
        *(value for piece in pieces for value in piece.params),
        today=any(piece.today for piece in pieces),
    )


def negation(condition: Sql) -> Sql:
    return Sql("NOT coalesce(") + condition + Sql(", false)")


EVERYBODY = Sql("true")
NOBODY = Sql("false")
COMPARISON_SQL = {
    "equals": "=",
    "not_equals": "<>",
    "greater_than": ">",
    "at_least": ">=",
    "less_than": "<",
    "at_most": "<=",
}


@dataclass(frozen=True)
class Subject:
    """What is tested: an expression, and what a date test needs to know besides it."""

    value: Sql
    now: datetime
    zone: Sql  # of the person; text, empty where unknown
    default_zone: str
    today: Sql


def value_test(test: Test, subject: Subject) -> Sql:
    if test.operator is Operator.IS_SET:
        condition = Sql("(") + subject.value + Sql(") IS NOT NULL")
    else:
        condition = _TESTS[test.type](test, subject)
    return negation(condition) if test.negated else condition


def fold_sql(value: Sql) -> Sql:
    """``meaning.fold``: in SQL where the text is ASCII, by the function itself elsewhere."""
    ascii_only = Sql("CASE WHEN strlen(") + value + Sql(") = length(") + value
    return (
        ascii_only + Sql(") THEN lower(") + value + Sql(") ELSE manta_fold(") + value + Sql(") END")
    )


def _string(test: Test, subject: Subject) -> Sql:
    operator, value = test.operator, test.value
    if operator is Operator.REGEX:
        return Sql("regexp_matches(") + subject.value + Sql(", ?::VARCHAR)", value)
    folded = fold_sql(subject.value)
    if operator is Operator.EQUALS:
        return folded + Sql(" = ?::VARCHAR", fold(value))
    if operator is Operator.IN:
        wanted = sorted({fold(one) for one in value})
        return folded + Sql(f" IN ({', '.join('?' * len(wanted))})", *wanted)
    function = {
        Operator.CONTAINS: "contains",
        Operator.STARTS_WITH: "starts_with",
        Operator.ENDS_WITH: "suffix",
    }[operator]
    return Sql(f"{function}(") + folded + Sql(", ?::VARCHAR)", fold(value))


def _number(test: Test, subject: Subject) -> Sql:
    operator, value = test.operator, test.value
    number = Sql("nullif((") + subject.value + Sql(")::DOUBLE, 'nan'::DOUBLE)")
    if operator is Operator.BETWEEN:
        return number + Sql(" BETWEEN ?::DOUBLE AND ?::DOUBLE", *value)
    if operator is Operator.IN:
        return number + Sql(f" IN ({', '.join(['?::DOUBLE'] * len(value))})", *value)
    return number + Sql(f" {COMPARISON_SQL[operator.value]} ?::DOUBLE", value)


def _boolean(test: Test, subject: Subject) -> Sql:
    return Sql("(") + subject.value + Sql(") = ?::BOOLEAN", test.value)


def _list(test: Test, subject: Subject) -> Sql:
    texts = Sql("list_filter(") + subject.value + Sql(", lambda t: t IS NOT NULL)")
    if test.operator is Operator.LENGTH:
        operator = COMPARISON_SQL[test.value.operator]
        return Sql("len(") + texts + Sql(f") {operator} ?::BIGINT", int(test.value.value))
    folded = Sql("list_transform(") + texts + Sql(", lambda t: ") + fold_sql(Sql("t")) + Sql(")")
    if test.operator is Operator.CONTAINS:
        return Sql("list_contains(") + folded + Sql(", ?::VARCHAR)", fold(test.value))
    function = "list_has_any" if test.operator is Operator.CONTAINS_ANY else "list_has_all"
    wanted = sorted({fold(one) for one in test.value})
    return Sql(f"{function}(") + folded + Sql(", ?::VARCHAR[])", wanted)


# -- dates -----------------------------------------------------------------------------------------


def _date(test: Test, subject: Subject) -> Sql:
    if test.operator in (Operator.ANNIVERSARY_TODAY, Operator.ANNIVERSARY_IN_THE_NEXT):
        return _anniversary(test, subject)
    if not by_days(test):
        low, high = instant_range(test, subject.now)
        bounds: list[Sql] = []
        if low is not None:
            bounds.append(subject.value + Sql(" >= ?::TIMESTAMP", low))
        if high is not None:
            bounds.append(subject.value + Sql(" < ?::TIMESTAMP", high))
        return Sql("(") + join(" AND ", bounds) + Sql(")")
    ends: list[Sql | None]
    offsets = day_offsets(test)
    if offsets is None:
        ends = [None if day is None else Sql("?::DATE", day) for day in day_range(test)]
    else:
        ends = [
            None if days is None else Sql("(") + subject.today + Sql(" + ?::INTEGER)", days)
            for days in offsets
        ]
    return _day_between(subject, *ends)


def _day_between(subject: Subject, first: Sql | None, last: Sql | None) -> Sql:
    """The day of the value within [first, last].

    The day in any zone is at most one from that in UTC, so the zone is asked only near the ends.
    """
    plain = Sql("CAST(") + subject.value + Sql(" AS DATE)")
    near = [Sql("abs(") + plain + Sql(" - ") + end + Sql(") <= 1") for end in (first, last) if end]
    day = Sql("CASE WHEN ") + subject.value + Sql(" <> ") + plain + Sql(" AND (")
    day += join(" OR ", near) + Sql(") THEN ") + _zoned_day(subject) + Sql(" ELSE ") + plain
    day += Sql(" END")
    bounds = [day + Sql(" >= ") + first] if first else []
    bounds += [day + Sql(" <= ") + last] if last else []
    return Sql("(") + join(" AND ", bounds) + Sql(")")


def _zoned_day(subject: Subject) -> Sql:
    call = Sql("manta_day(") + subject.value + Sql(", ") + subject.zone
    return call + Sql(", ?::VARCHAR)", subject.default_zone)


def _anniversary(test: Test, subject: Subject) -> Sql:
    plain = Sql("CAST(") + subject.value + Sql(" AS DATE)")
    day = Sql("CASE WHEN ") + subject.value + Sql(" <> ") + plain + Sql(" THEN ")
    day += _zoned_day(subject) + Sql(" ELSE ") + plain + Sql(" END")
    days = 0 if test.operator is Operator.ANNIVERSARY_TODAY else test.value.days
    first = 0 if days == 0 else 1
    found = []
    for year in (
        Sql("year(") + subject.today + Sql(")"),
        Sql("year(") + subject.today + Sql(") + 1"),
    ):
        # From 1 January: months never overflow a day, and 29 February gives way to the 28th.
        month = Sql("make_date(") + year + Sql(", month(") + day + Sql("), 1)")
        last_day = Sql("day(last_day(") + month + Sql("))")
        date = Sql("(") + month + Sql(" + CAST(least(day(") + day + Sql("), ") + last_day
        date += Sql(") - 1 AS INTEGER))")
        distance = date + Sql(" - ") + subject.today
        found.append(distance + Sql(" BETWEEN ? AND ?", first, days))
    return Sql("(") + join(" OR ", found) + Sql(")")


_TESTS = {
    AttributeType.STRING: _string,
    AttributeType.NUMBER: _number,
    AttributeType.BOOLEAN: _boolean,
    AttributeType.DATE: _date,
    AttributeType.LIST: _list,
}


# -- properties of events --------------------------------------------------------------------------


def _json(property_: Property) -> tuple[Sql, Sql]:
    """The JSON value of a property, and its JSON type; NULL where the text is not JSON."""
    document = "CASE WHEN json_valid(e.properties) THEN e.properties END"
    value = Sql(f"json_extract({document}, ?::VARCHAR)", property_.pointer)
    return value, Sql(f"json_type({document}, ?::VARCHAR)", property_.pointer)


def _json_text(property_: Property) -> Sql:
    value, kind = _json(property_)
    text = Sql("CASE WHEN ") + kind + Sql(" = 'VARCHAR' THEN ") + value
    return text + Sql(" ->> '$' END")


def key_text(by: Property) -> Sql:
    """``meaning.event_key`` of an event ``e``."""
    if by.column is not None:
        return Sql(f"e.{by.column}::VARCHAR")
    value, kind = _json(by)
    key = Sql("CASE ") + kind + Sql(" WHEN 'VARCHAR' THEN ") + value + Sql(" ->> '$'")
    key += Sql(" WHEN 'BIGINT' THEN ") + value + Sql("::VARCHAR")
    return key + Sql(" WHEN 'UBIGINT' THEN ") + value + Sql("::VARCHAR END")


def number_property(property_: Property) -> Sql:
    if property_.column is not None:
        return Sql(f"e.{property_.column}")
    value, kind = _json(property_)
    numeric = " IN ('BIGINT', 'UBIGINT', 'HUGEINT', 'UHUGEINT', 'DOUBLE', 'DECIMAL') THEN"
    number = Sql("TRY_CAST(") + value + Sql(" AS DOUBLE)")
    finite = Sql(f"{numeric} CASE WHEN isfinite(") + number + Sql(") THEN ") + number
    return Sql("CASE WHEN ") + kind + finite + Sql(" END END")


def property_value(property_: Property, test: Test) -> Sql:
    if property_.column is not None:
        return Sql(f"e.{property_.column}")
    value, kind = _json(property_)
    if test.operator is Operator.IS_SET:
        return Sql("nullif(") + kind + Sql(", 'NULL')")
    if test.type is AttributeType.STRING:
        return _json_text(property_)
    if test.type is AttributeType.NUMBER:
        return number_property(property_)
    if test.type is AttributeType.BOOLEAN:
        truth = Sql("CASE WHEN ") + kind + Sql(" = 'BOOLEAN' THEN TRY_CAST(")
        return truth + value + Sql(" AS BOOLEAN) END")
    if test.type is AttributeType.DATE:
        return Sql("manta_instant(") + _json_text(property_) + Sql(")")
    return Sql("manta_texts(e.properties, ?::VARCHAR)", property_.pointer)


def property_test(one: Filter, now: datetime, zone: str) -> Sql:
    """A filter over events ``e``; the days of its dates are the workspace zone's."""
    today = Sql("?::DATE", local_day(now, zone_of(None, zone)))
    value = property_value(one.property, one.test)
    return value_test(one.test, Subject(value, now, Sql("''"), zone, today))
