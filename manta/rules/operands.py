"""The readers of a rule's JSON: each takes a value and its path, and returns it checked.

All of them raise ``InvalidRequest`` by ``fail``, with the path, what stood there, and what would be
valid, with the nearest valid word where one is near.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any, NoReturn

import re2

from manta.clock import parse_instant
from manta.errors import InvalidRequest
from manta.rules.terms import (
    COMPARISONS,
    NEGATIONS,
    OPERATORS,
    UNITS,
    Comparison,
    Operator,
    Span,
    Test,
)
from manta.schema import AttributeType

LIST_MAX = 1_000
TEXT_MAX = 1_000
REGEX_MAX = 512
SPAN_DAYS_MAX = 36_500
COUNT_MAX = 1_000_000_000


# -- errors ----------------------------------------------------------------------------------------


def fail(path: str, problem: str, expected: str) -> NoReturn:
    raise InvalidRequest(f"{path}: {problem}; valid: {expected}", path=path, expected=expected)


def shown(value: Any) -> str:
    """What stood there, short, and never by a ``repr`` that could recurse."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "…")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else "a huge number"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return f"a value of type {type(value).__name__}"


def one_of(value: Any, valid: Collection[str], path: str, what: str) -> str:
    if isinstance(value, str) and value in valid:
        return value
    problem = f"{what} is {shown(value)}"
    if isinstance(value, str):
        near = get_close_matches(value[:100], list(valid), 1)
        problem = f"unknown {what} {shown(value)}" + (
            f", did you mean '{near[0]}'?" if near else ""
        )
    listed = list(valid)[:50]
    fail(path, problem, ", ".join(listed) + (", …" if len(valid) > 50 else "") or "none")


def object_with(
    value: Any, path: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    keys = (*required, *optional)
    if not isinstance(value, dict):
        fail(
            path,
            f"{shown(value)} stands where an object belongs",
            f"an object with {names(keys)}",
        )
    for key in value:
        plain = isinstance(key, str) and len(key) <= 60 and key.isprintable()
        one_of(key, keys, f"{path}.{key}" if plain else path, "key")
    for key in required:
        if key not in value:
            fail(path, f"{key!r} is missing", f"an object with {names(keys)}")
    return value


def only_key(value: Any, valid: Collection[str], path: str, what: str) -> tuple[str, Any]:
    """The one key of an object that says by its key what it is, and its value."""
    if not isinstance(value, dict) or len(value) != 1:
        got = f"{len(value)} keys" if isinstance(value, dict) else shown(value)
        fail(path, f"{what} has {got}", f"an object with exactly one key of {names(valid)}")
    ((key, inner),) = value.items()
    return one_of(key, valid, path, what), inner


def names(words: Collection[str]) -> str:
    return ", ".join(words)


def read_list(value: Any, path: str, maximum: int, minimum: int = 0) -> list[Any]:
    if not isinstance(value, list):
        fail(path, f"{shown(value)} stands where a list belongs", "a list")
    if not minimum <= len(value) <= maximum:
        fail(path, f"the list has {len(value)} entries", f"{minimum} to {maximum} entries")
    return value


def read_text(value: Any, path: str, maximum: int = TEXT_MAX, minimum: int = 0) -> str:
    if not isinstance(value, str):
        fail(path, f"{shown(value)} stands where text belongs", "text in quotes")
    if not minimum <= len(value) <= maximum:
        fail(path, f"the text has {len(value)} characters", f"{minimum} to {maximum} characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        fail(path, "the text holds half a surrogate pair", "valid Unicode text")
    return value


def read_needle(value: Any, path: str) -> str:
    return read_text(value, path, minimum=1)


def read_regex(value: Any, path: str) -> str:
    pattern = read_text(value, path, REGEX_MAX, 1)
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        cause = error.args[0]
        listed = cause.decode(errors="replace") if isinstance(cause, bytes) else str(cause)
        fail(path, f"not a regular expression: {listed}", "RE2 syntax (no look-around, no \\1)")
    return pattern


def read_number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail(path, f"{shown(value)} stands where a number belongs", "a number without quotes")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        fail(path, f"{shown(value)} is out of range", "a finite 64-bit floating-point number")
    return number + 0.0  # -0.0 becomes 0.0: one way to write a number


def read_integer(value: Any, path: str, minimum: int, maximum: int) -> int:
    number = read_number(value, path)
    if not number.is_integer() or not minimum <= number <= maximum:
        fail(path, f"the number is {shown(value)}", f"a whole number from {minimum} to {maximum}")
    return int(number)


def read_boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        fail(path, f"{shown(value)} stands where true or false belongs", "true, false")
    return value


def read_moment(value: Any, path: str) -> date | datetime:
    expected = 'a day ("2026-05-01") or an instant ("2026-05-01T12:00:00Z")'
    text = read_text(value, path, 64)
    moment: date | datetime
    try:
        moment = date.fromisoformat(text)
    except ValueError:
        try:
            moment = parse_instant(text)
        except (ValueError, OverflowError):
            fail(path, f"{shown(value)} is neither day nor instant", expected)
    if not 1000 <= moment.year <= 9000:
        fail(path, f"the year is {moment.year}", "a year from 1000 to 9000")
    return moment


def read_span(value: Any, path: str) -> Span:
    unit, count = only_key(value, UNITS, path, "length of time")
    span = Span(read_integer(count, f"{path}.{unit}", 1, SPAN_DAYS_MAX * 24 * 60), unit)
    if span.delta.days > SPAN_DAYS_MAX:
        fail(path, f"{count} {unit} is too long", f"at most {SPAN_DAYS_MAX} days")
    return span


def read_year_days(value: Any, path: str) -> Span:
    span = read_span(value, path)
    if span.days is None or span.days > 364:
        fail(path, "an anniversary is looked for in days", "1 to 364 days, or whole weeks")
    return span


def read_range(value: Any, path: str, item: Callable[[Any, str], Any]) -> tuple[Any, Any]:
    low, high = (item(one, f"{path}[{i}]") for i, one in enumerate(read_list(value, path, 2, 2)))
    if type(low) is not type(high):
        fail(path, "one end is a day and the other an instant", "two days or two instants")
    if low > high:
        fail(path, "the first value is greater than the second", "[least, greatest]")
    return low, high


def read_numbers(value: Any, path: str) -> tuple[float, float]:
    return read_range(value, path, read_number)


def read_moments(value: Any, path: str) -> tuple[Any, Any]:
    return read_range(value, path, read_moment)


def read_comparison(
    value: Any, path: str, minimum: float, maximum: float, whole: bool, extra: tuple[str, ...] = ()
) -> Comparison:
    fields = object_with(value, path, (*extra, "operator", "value"))
    operator = one_of(fields["operator"], COMPARISONS, f"{path}.operator", "operator")
    number = read_number(fields["value"], f"{path}.value")
    if not minimum <= number <= maximum or (whole and not number.is_integer()):
        kind = "whole number" if whole else "number"
        expected = f"a {kind} from {minimum:.0f} to {maximum:.0f}"
        fail(f"{path}.value", f"the number is {shown(fields['value'])}", expected)
    return Comparison(operator, number)


def read_length(value: Any, path: str) -> Comparison:
    return read_comparison(value, path, 0, COUNT_MAX, whole=True)


def read_texts(value: Any, path: str) -> tuple[str, ...]:
    return tuple(
        read_text(one, f"{path}[{i}]") for i, one in enumerate(read_list(value, path, LIST_MAX, 1))
    )


def read_number_list(value: Any, path: str) -> tuple[float, ...]:
    numbers = read_list(value, path, LIST_MAX, 1)
    return tuple(read_number(one, f"{path}[{i}]") for i, one in enumerate(numbers))


# What stands under "value": by type where types differ, else by operator.
_OPERANDS: dict[tuple[AttributeType, Operator], Callable[[Any, str], Any]] = {
    (AttributeType.STRING, Operator.EQUALS): read_text,
    (AttributeType.STRING, Operator.IN): read_texts,
    (AttributeType.STRING, Operator.CONTAINS): read_needle,
    (AttributeType.STRING, Operator.STARTS_WITH): read_needle,
    (AttributeType.STRING, Operator.ENDS_WITH): read_needle,
    (AttributeType.STRING, Operator.REGEX): read_regex,
    (AttributeType.NUMBER, Operator.EQUALS): read_number,
    (AttributeType.NUMBER, Operator.IN): read_number_list,
    (AttributeType.NUMBER, Operator.GREATER_THAN): read_number,
    (AttributeType.NUMBER, Operator.AT_LEAST): read_number,
    (AttributeType.NUMBER, Operator.LESS_THAN): read_number,
    (AttributeType.NUMBER, Operator.AT_MOST): read_number,
    (AttributeType.NUMBER, Operator.BETWEEN): read_numbers,
    (AttributeType.BOOLEAN, Operator.EQUALS): read_boolean,
    (AttributeType.DATE, Operator.ON): read_moment,
    (AttributeType.DATE, Operator.BEFORE): read_moment,
    (AttributeType.DATE, Operator.AFTER): read_moment,
    (AttributeType.DATE, Operator.BETWEEN): read_moments,
    (AttributeType.DATE, Operator.IN_THE_LAST): read_span,
    (AttributeType.DATE, Operator.IN_THE_NEXT): read_span,
    (AttributeType.DATE, Operator.AT_LEAST_AGO): read_span,
    (AttributeType.DATE, Operator.ANNIVERSARY_IN_THE_NEXT): read_year_days,
    (AttributeType.LIST, Operator.CONTAINS): read_text,
    (AttributeType.LIST, Operator.CONTAINS_ANY): read_texts,
    (AttributeType.LIST, Operator.CONTAINS_ALL): read_texts,
    (AttributeType.LIST, Operator.LENGTH): read_length,
}


def read_test(fields: dict[str, Any], type_: AttributeType, path: str) -> Test:
    """The test in ``operator`` and ``value`` of an object whose other keys are checked already."""
    name = one_of(
        fields["operator"], OPERATORS[type_], f"{path}.operator", f"operator of type {type_.value}"
    )
    operator = NEGATIONS.get(name) or Operator(name)
    operand = _OPERANDS.get((type_, operator))
    if operand is None:
        if "value" in fields:
            fail(f"{path}.value", f"{name} takes no value", "no key 'value'")
        return Test(type_, operator, name in NEGATIONS)
    if "value" not in fields:
        fail(path, f"'value' is missing for {name}", "an object with operator, value")
    value = operand(fields["value"], f"{path}.value")
    if operator is Operator.ON and isinstance(value, datetime):
        fail(f"{path}.value", "'on' compares days", 'a day ("2026-05-01")')
    return Test(type_, operator, name in NEGATIONS, value)
