"""From JSON to a checked rule: everything a stranger can get wrong is found here, with its path.

``parse`` walks the JSON top down and stops at the first mistake; it never goes deeper than
``DEPTH_MAX``, so nesting of any depth is refused by that limit and not by the interpreter's. An
error names the place (``$.all[2].event.where[0].operator``), what stood there, and what would be
valid, with the nearest valid word where one is near.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any, NoReturn

import re2

from manta.clock import parse_instant
from manta.errors import InvalidRequest
from manta.rules.nodes import (
    BUCKET_PARTS,
    BUILT_IN,
    COMPARISONS,
    CONSENT_STATUSES,
    MESSAGE_ACTIONS,
    MESSAGE_KINDS,
    NEGATIONS,
    ONCE,
    OPERATORS,
    PROPERTY_COLUMNS,
    PROPERTY_TYPES,
    UNITS,
    All,
    AnyOf,
    Attribute,
    Bucket,
    Comparison,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    Filter,
    Frame,
    FrameKind,
    Happening,
    IfFewer,
    LastMessages,
    Member,
    Not,
    Operator,
    Property,
    Rule,
    Span,
    Suppressed,
    Test,
)
from manta.schema import AttributeType

__all__ = ["Rule", "parse", "parse_text"]

DEPTH_MAX = 20
NODES_MAX = 500
LIST_MAX = 1_000
FILTERS_MAX = 20
TEXT_MAX = 1_000
REGEX_MAX = 512
PATH_MAX = 10
SPAN_DAYS_MAX = 36_500
MESSAGES_MAX = 100
COUNT_MAX = 1_000_000_000
SUM_MAX = 1e12
JSON_CHARACTERS_MAX = 1_000_000
JSON_NESTING_MAX = 100  # brackets; a rule within DEPTH_MAX needs fewer

_CHANNELS = ("email", "sms", "push")
_TEXT_OPERATORS = {Operator.STARTS_WITH, Operator.ENDS_WITH, Operator.REGEX}
_LIST_OPERATORS = {Operator.CONTAINS_ANY, Operator.CONTAINS_ALL, Operator.LENGTH}
_NUMBER_OPERATORS = {
    *(Operator.GREATER_THAN, Operator.AT_LEAST, Operator.LESS_THAN, Operator.AT_MOST),
}
_DATE_OPERATORS = {
    *(Operator.ON, Operator.BEFORE, Operator.AFTER, Operator.IN_THE_LAST, Operator.IN_THE_NEXT),
    *(Operator.AT_LEAST_AGO, Operator.ANNIVERSARY_TODAY, Operator.ANNIVERSARY_IN_THE_NEXT),
}


def parse(rule: Any, attributes: Mapping[str, AttributeType]) -> Rule:
    """The checked rule of parsed JSON; ``attributes`` are the declared ones with their types.

    Raises ``InvalidRequest`` with the path of the first mistake and what would be valid there.
    """
    return _Parser(attributes).condition(rule, "$", 1)


def parse_text(text: str, attributes: Mapping[str, AttributeType]) -> Rule:
    """The checked rule of JSON text; nesting is measured before anything recursive reads it."""
    if len(text) > JSON_CHARACTERS_MAX:
        _fail("$", f"the rule has {len(text)} characters", f"at most {JSON_CHARACTERS_MAX}")
    if _nesting(text) > JSON_NESTING_MAX:
        _fail("$", "the rule is nested too deeply", f"at most {DEPTH_MAX} levels of conditions")
    try:
        return parse(json.loads(text), attributes)
    except json.JSONDecodeError as error:
        _fail("$", f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}", "JSON")


def _nesting(text: str) -> int:
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


# -- errors ----------------------------------------------------------------------------------------


def _fail(path: str, problem: str, expected: str) -> NoReturn:
    raise InvalidRequest(f"{path}: {problem}; valid: {expected}", path=path, expected=expected)


def _shown(value: Any) -> str:
    """What stood there, short, and never by a ``repr`` that could recurse."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:60] + "…")
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else "a huge number"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return f"a value of type {type(value).__name__}"


def _one_of(value: Any, valid: Collection[str], path: str, what: str) -> str:
    if isinstance(value, str) and value in valid:
        return value
    problem = f"{what} is {_shown(value)}"
    if isinstance(value, str):
        near = get_close_matches(value[:100], list(valid), 1)
        problem = f"unknown {what} {_shown(value)}" + (
            f", did you mean '{near[0]}'?" if near else ""
        )
    shown = list(valid)[:50]
    _fail(path, problem, ", ".join(shown) + (", …" if len(valid) > 50 else "") or "none")


def _object(
    value: Any, path: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    keys = (*required, *optional)
    if not isinstance(value, dict):
        _fail(
            path,
            f"{_shown(value)} stands where an object belongs",
            f"an object with {_names(keys)}",
        )
    for key in value:
        _one_of(key, keys, f"{path}.{key}" if isinstance(key, str) else path, "key")
    for key in required:
        if key not in value:
            _fail(path, f"{key!r} is missing", f"an object with {_names(keys)}")
    return value


def _only(value: Any, valid: Collection[str], path: str, what: str) -> tuple[str, Any]:
    """The one key of an object that says by its key what it is, and its value."""
    if not isinstance(value, dict) or len(value) != 1:
        got = f"{len(value)} keys" if isinstance(value, dict) else _shown(value)
        _fail(path, f"{what} has {got}", f"an object with exactly one key of {_names(valid)}")
    ((key, inner),) = value.items()
    return _one_of(key, valid, path, what), inner


def _names(names: Collection[str]) -> str:
    return ", ".join(names)


def _list(value: Any, path: str, maximum: int, minimum: int = 0) -> list[Any]:
    if not isinstance(value, list):
        _fail(path, f"{_shown(value)} stands where a list belongs", "a list")
    if not minimum <= len(value) <= maximum:
        _fail(path, f"the list has {len(value)} entries", f"{minimum} to {maximum} entries")
    return value


def _text(value: Any, path: str, maximum: int = TEXT_MAX, minimum: int = 0) -> str:
    if not isinstance(value, str):
        _fail(path, f"{_shown(value)} stands where text belongs", "text in quotes")
    if not minimum <= len(value) <= maximum:
        _fail(path, f"the text has {len(value)} characters", f"{minimum} to {maximum} characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        _fail(path, "the text holds half a surrogate pair", "valid Unicode text")
    return value


def _needle(value: Any, path: str) -> str:
    return _text(value, path, minimum=1)


def _regex(value: Any, path: str) -> str:
    pattern = _text(value, path, REGEX_MAX, 1)
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        cause = error.args[0]
        shown = cause.decode(errors="replace") if isinstance(cause, bytes) else str(cause)
        _fail(path, f"not a regular expression: {shown}", "RE2 syntax (no look-around, no \\1)")
    return pattern


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _fail(path, f"{_shown(value)} stands where a number belongs", "a number without quotes")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _fail(path, f"{_shown(value)} is out of range", "a finite 64-bit floating-point number")
    return number + 0.0  # -0.0 becomes 0.0: one way to write a number


def _integer(value: Any, path: str, minimum: int, maximum: int) -> int:
    number = _number(value, path)
    if not number.is_integer() or not minimum <= number <= maximum:
        _fail(path, f"the number is {_shown(value)}", f"a whole number from {minimum} to {maximum}")
    return int(number)


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        _fail(path, f"{_shown(value)} stands where true or false belongs", "true, false")
    return value


def _moment(value: Any, path: str) -> date | datetime:
    expected = 'a day ("2026-05-01") or an instant ("2026-05-01T12:00:00Z")'
    text = _text(value, path, 64)
    moment: date | datetime
    try:
        moment = date.fromisoformat(text)
    except ValueError:
        try:
            moment = parse_instant(text)
        except (ValueError, OverflowError):
            _fail(path, f"{_shown(value)} is neither day nor instant", expected)
    if not 1000 <= moment.year <= 9000:
        _fail(path, f"the year is {moment.year}", "a year from 1000 to 9000")
    return moment


def _span(value: Any, path: str) -> Span:
    unit, count = _only(value, UNITS, path, "length of time")
    span = Span(_integer(count, f"{path}.{unit}", 1, SPAN_DAYS_MAX * 24 * 60), unit)
    if span.delta.days > SPAN_DAYS_MAX:
        _fail(path, f"{count} {unit} is too long", f"at most {SPAN_DAYS_MAX} days")
    return span


def _year_days(value: Any, path: str) -> Span:
    span = _span(value, path)
    if span.days is None or span.days > 364:
        _fail(path, "an anniversary is looked for in days", "1 to 364 days, or whole weeks")
    return span


def _range(value: Any, path: str, item: Callable[[Any, str], Any]) -> tuple[Any, Any]:
    low, high = (item(one, f"{path}[{i}]") for i, one in enumerate(_list(value, path, 2, 2)))
    if type(low) is not type(high):
        _fail(path, "one end is a day and the other an instant", "two days or two instants")
    if low > high:
        _fail(path, "the first value is greater than the second", "[least, greatest]")
    return low, high


def _numbers(value: Any, path: str) -> tuple[float, float]:
    return _range(value, path, _number)


def _moments(value: Any, path: str) -> tuple[Any, Any]:
    return _range(value, path, _moment)


def _comparison(
    value: Any, path: str, minimum: float, maximum: float, whole: bool, extra: tuple[str, ...] = ()
) -> Comparison:
    fields = _object(value, path, (*extra, "operator", "value"))
    operator = _one_of(fields["operator"], COMPARISONS, f"{path}.operator", "operator")
    number = _number(fields["value"], f"{path}.value")
    if not minimum <= number <= maximum or (whole and not number.is_integer()):
        kind = "whole number" if whole else "number"
        expected = f"a {kind} from {minimum:.0f} to {maximum:.0f}"
        _fail(f"{path}.value", f"the number is {_shown(fields['value'])}", expected)
    return Comparison(operator, number)


def _length(value: Any, path: str) -> Comparison:
    return _comparison(value, path, 0, COUNT_MAX, whole=True)


def _texts(value: Any, path: str) -> tuple[str, ...]:
    return tuple(
        _text(one, f"{path}[{i}]") for i, one in enumerate(_list(value, path, LIST_MAX, 1))
    )


def _number_list(value: Any, path: str) -> tuple[float, ...]:
    return tuple(
        _number(one, f"{path}[{i}]") for i, one in enumerate(_list(value, path, LIST_MAX, 1))
    )


# What stands under "value": by type where types differ, else by operator.
_OPERANDS: dict[tuple[AttributeType, Operator], Callable[[Any, str], Any]] = {
    (AttributeType.STRING, Operator.EQUALS): _text,
    (AttributeType.STRING, Operator.IN): _texts,
    (AttributeType.STRING, Operator.CONTAINS): _needle,
    (AttributeType.STRING, Operator.STARTS_WITH): _needle,
    (AttributeType.STRING, Operator.ENDS_WITH): _needle,
    (AttributeType.STRING, Operator.REGEX): _regex,
    (AttributeType.NUMBER, Operator.EQUALS): _number,
    (AttributeType.NUMBER, Operator.IN): _number_list,
    (AttributeType.NUMBER, Operator.GREATER_THAN): _number,
    (AttributeType.NUMBER, Operator.AT_LEAST): _number,
    (AttributeType.NUMBER, Operator.LESS_THAN): _number,
    (AttributeType.NUMBER, Operator.AT_MOST): _number,
    (AttributeType.NUMBER, Operator.BETWEEN): _numbers,
    (AttributeType.BOOLEAN, Operator.EQUALS): _boolean,
    (AttributeType.DATE, Operator.ON): _moment,
    (AttributeType.DATE, Operator.BEFORE): _moment,
    (AttributeType.DATE, Operator.AFTER): _moment,
    (AttributeType.DATE, Operator.BETWEEN): _moments,
    (AttributeType.DATE, Operator.IN_THE_LAST): _span,
    (AttributeType.DATE, Operator.IN_THE_NEXT): _span,
    (AttributeType.DATE, Operator.AT_LEAST_AGO): _span,
    (AttributeType.DATE, Operator.ANNIVERSARY_IN_THE_NEXT): _year_days,
    (AttributeType.LIST, Operator.CONTAINS): _text,
    (AttributeType.LIST, Operator.CONTAINS_ANY): _texts,
    (AttributeType.LIST, Operator.CONTAINS_ALL): _texts,
    (AttributeType.LIST, Operator.LENGTH): _length,
}


def _test(fields: dict[str, Any], type_: AttributeType, path: str) -> Test:
    """The test in ``operator`` and ``value`` of an object whose other keys are checked already."""
    name = _one_of(
        fields["operator"], OPERATORS[type_], f"{path}.operator", f"operator of type {type_.value}"
    )
    operator = NEGATIONS.get(name) or Operator(name)
    operand = _OPERANDS.get((type_, operator))
    if operand is None:
        if "value" in fields:
            _fail(f"{path}.value", f"{name} takes no value", "no key 'value'")
        return Test(type_, operator, name in NEGATIONS)
    if "value" not in fields:
        _fail(path, f"'value' is missing for {name}", "an object with operator, value")
    value = operand(fields["value"], f"{path}.value")
    if operator is Operator.ON and isinstance(value, datetime):
        _fail(f"{path}.value", "'on' compares days", 'a day ("2026-05-01")')
    return Test(type_, operator, name in NEGATIONS, value)


class _Parser:
    def __init__(self, attributes: Mapping[str, AttributeType]) -> None:
        self._attributes = {**attributes, **BUILT_IN}
        self._nodes = 0
        self._kinds: dict[str, Callable[[Any, str], Rule]] = {
            "attribute": self._attribute,
            "event": self._event,
            "first_time": lambda value, path: self._event_time(value, path, True),
            "last_time": lambda value, path: self._event_time(value, path, False),
            "last_messages": self._last_messages,
            "consent": self._consent,
            "suppressed": self._suppressed,
            "member": self._member,
            "bucket": self._bucket,
        }
        self._all_kinds = ("all", "any", "exactly_one", "not", *self._kinds)

    def condition(self, value: Any, path: str, depth: int) -> Rule:
        if depth > DEPTH_MAX:
            _fail(path, "conditions are nested too deeply", f"at most {DEPTH_MAX} levels")
        self._count(path)
        kind, inner = _only(value, self._all_kinds, path, "condition")
        place = f"{path}.{kind}"
        if kind == "not":
            return Not(self.condition(inner, place, depth + 1))
        if kind in self._kinds:
            return self._kinds[kind](inner, place)
        children = tuple(
            self.condition(child, f"{place}[{i}]", depth + 1)
            for i, child in enumerate(_list(inner, place, NODES_MAX))
        )
        return {"all": All, "any": AnyOf, "exactly_one": ExactlyOne}[kind](children)

    def _count(self, path: str) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            _fail(path, "the rule has too many conditions", f"at most {NODES_MAX} conditions")

    def _attribute(self, value: Any, path: str) -> Rule:
        fields = _object(value, path, ("name", "operator"), ("value",))
        name = _one_of(fields["name"], self._attributes, f"{path}.name", "attribute")
        return Attribute(name, _test(fields, AttributeType(self._attributes[name]), path))

    def _happening(self, value: Any, path: str, extra: tuple[str, ...] = ()) -> Happening:
        fields = _object(value, path, ("type",), ("where", "within", *extra))
        where = _list(fields.get("where", []), f"{path}.where", FILTERS_MAX)
        return Happening(
            _text(fields["type"], f"{path}.type", 100, 1),
            tuple(self._filter(one, f"{path}.where[{i}]") for i, one in enumerate(where)),
            _frame(fields["within"], f"{path}.within") if "within" in fields else None,
        )

    def _filter(self, value: Any, path: str) -> Filter:
        self._count(path)
        fields = _object(value, path, ("property", "operator"), ("value", "type"))
        property_ = _property(fields["property"], f"{path}.property")
        type_ = PROPERTY_TYPES.get(property_.name)
        if type_ is None:
            given = fields.get("type") or _inferred(fields)
        else:
            given = fields.get("type", type_.value)
            if given != type_.value:
                _fail(f"{path}.type", f"{property_.name} is a {type_.value}", type_.value)
        type_ = AttributeType(_one_of(given, list(AttributeType), f"{path}.type", "type"))
        return Filter(property_, _test(fields, type_, path))

    def _event(self, value: Any, path: str) -> Rule:
        happening = self._happening(value, path, ("count", "sum"))
        if "sum" in value:
            if "count" in value:
                _fail(path, "both 'count' and 'sum' are given", "one of them")
            place = f"{path}.sum"
            total = _comparison(value["sum"], place, -SUM_MAX, SUM_MAX, False, ("property",))
            summed = _property(value["sum"]["property"], f"{place}.property")
            if PROPERTY_TYPES.get(
                summed.name, AttributeType.NUMBER
            ) is not AttributeType.NUMBER or (summed.name == "campaign"):
                expected = "amount, or a number among the properties (properties.NAME)"
                _fail(f"{place}.property", f"{summed.name} cannot be summed", expected)
            return Event(happening, total, summed)
        if "count" not in value:
            return Event(happening, ONCE)
        return Event(happening, _comparison(value["count"], f"{path}.count", 0, COUNT_MAX, True))

    def _event_time(self, value: Any, path: str, first: bool) -> Rule:
        happening = self._happening(value, path)
        if happening.within is None:
            _fail(path, "'within' is missing", "an object with type, where, within")
        return EventTime(first, happening)

    def _last_messages(self, value: Any, path: str) -> Rule:
        fields = _object(value, path, ("number", "which", "were"), ("kind", "if_fewer"))
        number = _integer(fields["number"], f"{path}.number", 1, MESSAGES_MAX)
        which: str | Comparison
        if isinstance(fields["which"], dict):
            which = _comparison(fields["which"], f"{path}.which", 0, MESSAGES_MAX, True)
        else:
            which = _one_of(fields["which"], ("any", "all", "none"), f"{path}.which", "quantifier")
        if_fewer = fields.get("if_fewer", "false")
        return LastMessages(
            number,
            _one_of(fields["were"], MESSAGE_ACTIONS, f"{path}.were", "action"),
            which,
            _one_of(fields.get("kind", "marketing"), MESSAGE_KINDS, f"{path}.kind", "kind"),
            IfFewer(_one_of(if_fewer, list(IfFewer), f"{path}.if_fewer", "answer")),
        )

    def _consent(self, value: Any, path: str) -> Rule:
        fields = _object(value, path, ("channel", "topic", "status"))
        return Consent(
            _one_of(fields["channel"], _CHANNELS, f"{path}.channel", "channel"),
            _text(fields["topic"], f"{path}.topic", 100, 1),
            _one_of(fields["status"], CONSENT_STATUSES, f"{path}.status", "status"),
        )

    def _suppressed(self, value: Any, path: str) -> Rule:
        fields = _object(value, path, ("channel",), ("reason",))
        _one_of(fields["channel"], ("email",), f"{path}.channel", "channel")
        reason = fields.get("reason")
        return Suppressed(None if reason is None else _text(reason, f"{path}.reason", 100, 1))

    def _member(self, value: Any, path: str) -> Rule:
        fields = _object(value, path, ("segment",))
        return Member(_integer(fields["segment"], f"{path}.segment", 0, (1 << 31) - 1))

    def _bucket(self, value: Any, path: str) -> Rule:
        fields = _object(value, path, ("salt", "from", "to"))
        start, end = (_percentage(fields[key], f"{path}.{key}") for key in ("from", "to"))
        if start >= end:
            _fail(path, "the range is empty", "'from' less than 'to'")
        return Bucket(_text(fields["salt"], f"{path}.salt", 100, 1), start, end)


def _percentage(value: Any, path: str) -> int:
    hundredths = _number(value, path) * 100
    if not 0 <= hundredths <= BUCKET_PARTS or abs(hundredths - round(hundredths)) > 1e-6:
        _fail(path, f"the percentage is {_shown(value)}", "0 to 100 with at most two decimals")
    return round(hundredths)


def _frame(value: Any, path: str) -> Frame:
    key, inner = _only(value, list(FrameKind), path, "time frame")
    kind, place = FrameKind(key), f"{path}.{key}"
    if kind in (FrameKind.LAST, FrameKind.AT_LEAST_AGO):
        return Frame(kind, _span(inner, place))
    if kind is FrameKind.BETWEEN:
        return Frame(kind, _moments(inner, place))
    return Frame(kind, _moment(inner, place))


def _property(value: Any, path: str) -> Property:
    name = _text(value, path, 500, 1)
    if name in PROPERTY_COLUMNS:
        return Property((name,))
    keys = tuple(name.split("."))
    if keys[0] != "properties" or len(keys) < 2:
        near = get_close_matches(name, list(PROPERTY_COLUMNS), 1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        expected = f"{_names(PROPERTY_COLUMNS)}, or properties.NAME for one of the event's own"
        _fail(path, f"unknown property {_shown(name)}{hint}", expected)
    if len(keys) > PATH_MAX + 1:
        _fail(path, f"the path has {len(keys) - 1} keys", f"at most {PATH_MAX} keys")
    for key in keys[1:]:
        if not key or key.isdecimal() or "\0" in key:
            _fail(path, f"{_shown(key)} is no key of an object", "names between dots, not numbers")
    return Property(keys)


def _inferred(fields: dict[str, Any]) -> str:
    """The type that operator and value speak of, where a property's filter does not say."""
    name, value = fields["operator"], fields.get("value")
    operator = NEGATIONS.get(name, name) if isinstance(name, str) else None
    if operator in _LIST_OPERATORS:
        return AttributeType.LIST
    if operator in _DATE_OPERATORS:
        return AttributeType.DATE
    if operator in _NUMBER_OPERATORS:
        return AttributeType.NUMBER
    sample = value[0] if isinstance(value, list) and value else value
    if isinstance(sample, bool):
        return AttributeType.BOOLEAN
    if isinstance(sample, int | float):
        return AttributeType.NUMBER
    if operator == Operator.BETWEEN:
        return AttributeType.DATE
    return AttributeType.STRING
