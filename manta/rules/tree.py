"""From JSON to a checked rule: everything a stranger can get wrong is found here, with its path.

``parse`` walks the JSON top down and stops at the first mistake; it never goes deeper than
``DEPTH_MAX``, so nesting of any depth is refused by that limit and not by the interpreter's. An
error names the place (``$.all[2].event.where[0].operator``), what stood there, and what would be
valid, with the nearest valid word where one is near.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from manta.rules.nodes import (
    BUCKET_PARTS,
    ONCE,
    All,
    AnyOf,
    Attribute,
    Bucket,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    HasBeen,
    IfFewer,
    Keyed,
    LastMessages,
    Member,
    Not,
    Prediction,
    Rule,
    Sequence,
    Step,
    Suppressed,
)
from manta.rules.operands import (
    COUNT_MAX,
    fail,
    names,
    object_with,
    one_of,
    only_key,
    read_boolean,
    read_comparison,
    read_integer,
    read_list,
    read_moment,
    read_moments,
    read_number,
    read_span,
    read_test,
    read_text,
    shown,
)
from manta.rules.terms import (
    BUILT_IN,
    CONSENT_STATUSES,
    MESSAGE_ACTIONS,
    MESSAGE_KINDS,
    NEGATIONS,
    PROPERTY_COLUMNS,
    PROPERTY_TYPES,
    Comparison,
    Filter,
    Frame,
    FrameKind,
    Happening,
    Operator,
    Property,
)
from manta.schema import AttributeType

__all__ = ["Rule", "parse", "parse_text"]

DEPTH_MAX = 20
NODES_MAX = 500
FILTERS_MAX = 20
PATH_MAX = 10
MESSAGES_MAX = 100
STEPS_MAX = 10
SUM_MAX = 1e12
JSON_CHARACTERS_MAX = 1_000_000
JSON_NESTING_MAX = 100  # brackets; a rule within DEPTH_MAX needs fewer

_GROUPS = ("all", "any", "exactly_one", "not")
_KEYED_KINDS = ("event", "first_time", "last_time", "sequence")
# Of what else than attributes it is kept since when it has its value.
_HELD_FIELDS = ("time_zone", "locale")
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
        fail("$", f"the rule has {len(text)} characters", f"at most {JSON_CHARACTERS_MAX}")
    if _nesting(text) > JSON_NESTING_MAX:
        fail("$", "the rule is nested too deeply", f"at most {DEPTH_MAX} levels of conditions")
    try:
        return parse(json.loads(text), attributes)
    except json.JSONDecodeError as error:
        fail("$", f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}", "JSON")


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
            "sequence": self._sequence,
            "has_been": self._has_been,
            "prediction": self._prediction,
        }
        self._inside_key = False

    def condition(self, value: Any, path: str, depth: int) -> Rule:
        if depth > DEPTH_MAX:
            fail(path, "conditions are nested too deeply", f"at most {DEPTH_MAX} levels")
        self._count(path)
        known = _KEYED_KINDS if self._inside_key else (*self._kinds, "keyed")
        kind, inner = only_key(value, (*_GROUPS, *known), path, "condition")
        place = f"{path}.{kind}"
        if kind == "keyed":
            return self._keyed(inner, place, depth)
        if kind == "not":
            return Not(self.condition(inner, place, depth + 1))
        if kind in self._kinds:
            return self._kinds[kind](inner, place)
        children = tuple(
            self.condition(child, f"{place}[{i}]", depth + 1)
            for i, child in enumerate(read_list(inner, place, NODES_MAX))
        )
        return {"all": All, "any": AnyOf, "exactly_one": ExactlyOne}[kind](children)

    def _count(self, path: str) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            fail(path, "the rule has too many conditions", f"at most {NODES_MAX} conditions")

    def _attribute(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("name", "operator"), ("value",))
        name = one_of(fields["name"], self._attributes, f"{path}.name", "attribute")
        return Attribute(name, read_test(fields, AttributeType(self._attributes[name]), path))

    def _happening(self, value: Any, path: str, extra: tuple[str, ...] = ()) -> Happening:
        fields = object_with(value, path, ("type",), ("where", "within", *extra))
        where = read_list(fields.get("where", []), f"{path}.where", FILTERS_MAX)
        return Happening(
            read_text(fields["type"], f"{path}.type", 100, 1),
            tuple(self._filter(one, f"{path}.where[{i}]") for i, one in enumerate(where)),
            _frame(fields["within"], f"{path}.within") if "within" in fields else None,
        )

    def _filter(self, value: Any, path: str) -> Filter:
        self._count(path)
        fields = object_with(value, path, ("property", "operator"), ("value", "type"))
        property_ = _property(fields["property"], f"{path}.property")
        type_ = PROPERTY_TYPES.get(property_.name)
        if type_ is None:
            given = fields.get("type") or _inferred(fields)
        else:
            given = fields.get("type", type_.value)
            if given != type_.value:
                fail(f"{path}.type", f"{property_.name} is a {type_.value}", type_.value)
        type_ = AttributeType(one_of(given, list(AttributeType), f"{path}.type", "type"))
        return Filter(property_, read_test(fields, type_, path))

    def _event(self, value: Any, path: str) -> Rule:
        happening = self._happening(value, path, ("count", "sum"))
        if "sum" in value:
            if "count" in value:
                fail(path, "both 'count' and 'sum' are given", "one of them")
            place = f"{path}.sum"
            total = read_comparison(value["sum"], place, -SUM_MAX, SUM_MAX, False, ("property",))
            summed = _property(value["sum"]["property"], f"{place}.property")
            if summed.name in ("item", "campaign"):
                expected = "amount, or a number among the properties (properties.NAME)"
                fail(f"{place}.property", f"{summed.name} cannot be summed", expected)
            return Event(happening, total, summed)
        if "count" not in value:
            return Event(happening, ONCE)
        count = read_comparison(value["count"], f"{path}.count", 0, COUNT_MAX, True)
        return Event(happening, count)

    def _event_time(self, value: Any, path: str, first: bool) -> Rule:
        happening = self._happening(value, path)
        if happening.within is None:
            fail(path, "'within' is missing", "an object with type, where, within")
        return EventTime(first, happening)

    def _last_messages(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("number", "which", "were"), ("kind", "if_fewer"))
        number = read_integer(fields["number"], f"{path}.number", 1, MESSAGES_MAX)
        which: str | Comparison
        if isinstance(fields["which"], dict):
            which = read_comparison(fields["which"], f"{path}.which", 0, MESSAGES_MAX, True)
        else:
            which = one_of(fields["which"], ("any", "all", "none"), f"{path}.which", "quantifier")
        if_fewer = fields.get("if_fewer", "false")
        return LastMessages(
            number,
            one_of(fields["were"], MESSAGE_ACTIONS, f"{path}.were", "action"),
            which,
            one_of(fields.get("kind", "marketing"), MESSAGE_KINDS, f"{path}.kind", "kind"),
            IfFewer(one_of(if_fewer, list(IfFewer), f"{path}.if_fewer", "answer")),
        )

    def _consent(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("channel", "topic", "status"))
        return Consent(
            one_of(fields["channel"], _CHANNELS, f"{path}.channel", "channel"),
            read_text(fields["topic"], f"{path}.topic", 100, 1),
            one_of(fields["status"], CONSENT_STATUSES, f"{path}.status", "status"),
        )

    def _suppressed(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("channel",), ("reason",))
        one_of(fields["channel"], ("email",), f"{path}.channel", "channel")
        reason = fields.get("reason")
        return Suppressed(None if reason is None else read_text(reason, f"{path}.reason", 100, 1))

    def _member(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("segment",))
        return Member(read_integer(fields["segment"], f"{path}.segment", 0, (1 << 31) - 1))

    def _bucket(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("salt", "from", "to"))
        start, end = (_percentage(fields[key], f"{path}.{key}") for key in ("from", "to"))
        if start >= end:
            fail(path, "the range is empty", "'from' less than 'to'")
        return Bucket(read_text(fields["salt"], f"{path}.salt", 100, 1), start, end)

    def _sequence(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("steps",), ("within",))
        listed = read_list(fields["steps"], f"{path}.steps", STEPS_MAX, 2)
        return Sequence(
            tuple(
                self._step(one, f"{path}.steps[{i}]", i == 0, i == len(listed) - 1)
                for i, one in enumerate(listed)
            ),
            _frame(fields["within"], f"{path}.within") if "within" in fields else None,
        )

    def _step(self, value: Any, path: str, first: bool, last: bool) -> Step:
        self._count(path)
        fields = object_with(value, path, ("type",), ("where", "within", "absent"))
        bare = {key: one for key, one in fields.items() if key in ("type", "where")}
        absent = read_boolean(fields.get("absent", False), f"{path}.absent")
        if absent and not last:
            fail(f"{path}.absent", "a step before the last is absent", "an absent last step")
        if first and "within" in fields:
            expected = "no 'within': the first step follows nothing"
            fail(f"{path}.within", "the first step has a length of time", expected)
        if absent and "within" not in fields:
            fail(path, "'within' is missing", "how long an absent event is waited for")
        span = read_span(fields["within"], f"{path}.within") if "within" in fields else None
        return Step(self._happening(bare, path), span, absent)

    def _has_been(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("attribute", "for"))
        attribute = self._attribute(fields["attribute"], f"{path}.attribute")
        assert isinstance(attribute, Attribute)
        if attribute.name in BUILT_IN and attribute.name not in _HELD_FIELDS:
            problem = f"since when {attribute.name} has its value is not kept"
            expected = f"an attribute, {' or '.join(_HELD_FIELDS)}"
            fail(f"{path}.attribute.name", problem, expected)
        return HasBeen(attribute, read_span(fields["for"], f"{path}.for"))

    def _prediction(self, value: Any, path: str) -> Rule:
        fields = object_with(value, path, ("name", "operator"), ("value",))
        name = read_text(fields["name"], f"{path}.name", 100, 1)
        return Prediction(name, read_test(fields, AttributeType.NUMBER, path))

    def _keyed(self, value: Any, path: str, depth: int) -> Rule:
        fields = object_with(value, path, ("by", "rule"))
        by = _property(fields["by"], f"{path}.by")
        if by.name == "amount":
            expected = "item, campaign, or properties.NAME for one of the events' own"
            fail(f"{path}.by", "amount is no key", expected)
        self._inside_key = True
        try:
            keyed = Keyed(by, self.condition(fields["rule"], f"{path}.rule", depth + 1))
        finally:
            self._inside_key = False
        if not keyed.happenings:
            fail(f"{path}.rule", "the rule asks for no event", names(_KEYED_KINDS))
        return keyed


def _percentage(value: Any, path: str) -> int:
    hundredths = read_number(value, path) * 100
    if not 0 <= hundredths <= BUCKET_PARTS or abs(hundredths - round(hundredths)) > 1e-6:
        fail(path, f"the percentage is {shown(value)}", "0 to 100 with at most two decimals")
    return round(hundredths)


def _frame(value: Any, path: str) -> Frame:
    key, inner = only_key(value, list(FrameKind), path, "time frame")
    kind, place = FrameKind(key), f"{path}.{key}"
    if kind in (FrameKind.LAST, FrameKind.AT_LEAST_AGO):
        return Frame(kind, read_span(inner, place))
    if kind is FrameKind.BETWEEN:
        return Frame(kind, read_moments(inner, place))
    return Frame(kind, read_moment(inner, place))


def _property(value: Any, path: str) -> Property:
    name = read_text(value, path, 500, 1)
    if name in PROPERTY_COLUMNS:
        return Property((name,))
    keys = tuple(name.split("."))
    if keys[0] != "properties" or len(keys) < 2:
        near = get_close_matches(name, list(PROPERTY_COLUMNS), 1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        expected = f"{names(PROPERTY_COLUMNS)}, or properties.NAME for one of the event's own"
        fail(path, f"unknown property {shown(name)}{hint}", expected)
    if len(keys) > PATH_MAX + 1:
        fail(path, f"the path has {len(keys) - 1} keys", f"at most {PATH_MAX} keys")
    for key in keys[1:]:
        if not key or key.isdecimal() or "\0" in key:
            fail(path, f"{shown(key)} is no key of an object", "names between dots, not numbers")
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
