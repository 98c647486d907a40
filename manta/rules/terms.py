"""The words of a rule below its conditions: operators with operands, properties, time frames.

All of them are values, checked by ``manta.rules.tree`` and made into conditions by
``manta.rules.nodes``. ``to_json`` is canonical.

A negative operator (``not_equals``) is its positive form with ``negated``: the positive form of
anything missing is false, so its negation is true, and no back end has to know two rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from manta.clock import as_text
from manta.schema import AttributeType


class Operator(StrEnum):
    """The positive operators; ``NEGATIONS`` names the negative ones."""

    EQUALS = "equals"
    IN = "in"
    IS_SET = "is_set"
    CONTAINS = "contains"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"
    REGEX = "regex"
    GREATER_THAN = "greater_than"
    AT_LEAST = "at_least"
    LESS_THAN = "less_than"
    AT_MOST = "at_most"
    BETWEEN = "between"
    CONTAINS_ANY = "contains_any"
    CONTAINS_ALL = "contains_all"
    LENGTH = "length"
    ON = "on"
    BEFORE = "before"
    AFTER = "after"
    IN_THE_LAST = "in_the_last"
    IN_THE_NEXT = "in_the_next"
    AT_LEAST_AGO = "at_least_ago"
    ANNIVERSARY_TODAY = "anniversary_today"
    ANNIVERSARY_IN_THE_NEXT = "anniversary_in_the_next"


NEGATIONS = {
    "not_equals": Operator.EQUALS,
    "not_in": Operator.IN,
    "not_set": Operator.IS_SET,
    "not_contains": Operator.CONTAINS,
    "not_starts_with": Operator.STARTS_WITH,
    "not_ends_with": Operator.ENDS_WITH,
    "not_regex": Operator.REGEX,
    "not_between": Operator.BETWEEN,
    "not_contains_any": Operator.CONTAINS_ANY,
    "not_contains_all": Operator.CONTAINS_ALL,
}
_NEGATIVE_NAMES = {operator: name for name, operator in NEGATIONS.items()}

# Which operators a type has, in the order in which an error lists them.
OPERATORS: dict[AttributeType, tuple[str, ...]] = {
    AttributeType.STRING: (
        *("equals", "not_equals", "in", "not_in", "contains", "not_contains"),
        *("starts_with", "not_starts_with", "ends_with", "not_ends_with"),
        *("regex", "not_regex", "is_set", "not_set"),
    ),
    AttributeType.NUMBER: (
        *("equals", "not_equals", "greater_than", "at_least", "less_than", "at_most"),
        *("between", "not_between", "in", "not_in", "is_set", "not_set"),
    ),
    AttributeType.BOOLEAN: ("equals", "not_equals", "is_set", "not_set"),
    AttributeType.DATE: (
        *("on", "before", "after", "between", "not_between"),
        *("in_the_last", "in_the_next", "at_least_ago"),
        *("anniversary_today", "anniversary_in_the_next", "is_set", "not_set"),
    ),
    AttributeType.LIST: (
        *("contains", "not_contains", "contains_any", "not_contains_any"),
        *("contains_all", "not_contains_all", "length", "is_set", "not_set"),
    ),
}

# The comparisons of counts, sums and lengths.
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "equals": eq,
    "not_equals": ne,
    "greater_than": gt,
    "at_least": ge,
    "less_than": lt,
    "at_most": le,
}
UNITS = {
    "minutes": timedelta(minutes=1),
    "hours": timedelta(hours=1),
    "days": timedelta(days=1),
    "weeks": timedelta(weeks=1),
}
BUILT_IN: dict[str, AttributeType] = {
    "email": AttributeType.STRING,
    "email_domain": AttributeType.STRING,
    "time_zone": AttributeType.STRING,
    "locale": AttributeType.STRING,
    "created_at": AttributeType.DATE,
}
MESSAGE_ACTIONS = ("opened", "clicked", "ignored")
MESSAGE_KINDS = ("marketing", "transactional", "any")
CONSENT_STATUSES = ("subscribed", "unsubscribed", "pending")


def moment_json(value: date | datetime) -> str:
    return as_text(value) if isinstance(value, datetime) else value.isoformat()


@dataclass(frozen=True, slots=True)
class Span:
    """A length of time: ``{"days": 30}``. Days and weeks of a *date* are calendar days."""

    count: int
    unit: str

    @property
    def delta(self) -> timedelta:
        return self.count * UNITS[self.unit]

    @property
    def days(self) -> int | None:
        """Whole days, when the unit is a calendar's; ``None`` for hours and minutes."""
        return {"days": self.count, "weeks": 7 * self.count}.get(self.unit)

    def to_json(self) -> dict[str, int]:
        return {self.unit: self.count}


@dataclass(frozen=True, slots=True)
class Comparison:
    operator: str
    value: float

    @property
    def function(self) -> Callable[[Any, Any], bool]:
        return COMPARISONS[self.operator]

    def holds(self, measured: float) -> bool:
        return self.function(measured, self.value)

    def to_json(self) -> dict[str, Any]:
        return {"operator": self.operator, "value": number_json(self.value)}


@dataclass(frozen=True, slots=True)
class Test:
    """An operator with its operand, for a value of ``type``.

    The operand is text, a float, a bool, a ``date`` (a whole day) or ``datetime`` (an instant), a
    ``Span``, a ``Comparison``, a tuple of the first kinds, or ``None``.
    """

    type: AttributeType
    operator: Operator
    negated: bool = False
    value: Any = None

    @property
    def name(self) -> str:
        return _NEGATIVE_NAMES[self.operator] if self.negated else self.operator.value

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"operator": self.name}
        if self.value is not None:
            shown["value"] = _value_json(self.value)
        return shown


def number_json(value: float) -> float:
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def _value_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_value_json(item) for item in value]
    if isinstance(value, date):
        return moment_json(value)
    if isinstance(value, Span | Comparison):
        return value.to_json()
    return number_json(value) if isinstance(value, float) else value


@dataclass(frozen=True, slots=True)
class Property:
    """Something an event carries: a column of its own, or a path into its JSON ``properties``."""

    path: tuple[str, ...]

    @property
    def column(self) -> str | None:
        return PROPERTY_COLUMNS.get(self.path[0]) if len(self.path) == 1 else None

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def pointer(self) -> str:
        """RFC 6901 pointer into the JSON object."""
        return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in self.path[1:])


PROPERTY_COLUMNS = {"item": "item", "amount": "amount", "campaign": "campaign_id"}
PROPERTY_TYPES = {
    "item": AttributeType.STRING,
    "amount": AttributeType.NUMBER,
    "campaign": AttributeType.NUMBER,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """One property filter of an event; ``where`` lists must all hold."""

    property: Property
    test: Test

    def to_json(self) -> dict[str, Any]:
        shown = {"property": self.property.name, **self.test.to_json()}
        if self.property.column is None:
            shown["type"] = self.test.type.value
        return shown


class FrameKind(StrEnum):
    LAST = "last"
    AT_LEAST_AGO = "at_least_ago"
    BEFORE = "before"
    AFTER = "after"
    BETWEEN = "between"


@dataclass(frozen=True, slots=True)
class Frame:
    """When an event must have happened: a ``Span`` back from now, or absolute moments."""

    kind: FrameKind
    value: Any

    def to_json(self) -> dict[str, Any]:
        return {self.kind.value: _value_json(self.value)}


@dataclass(frozen=True, slots=True)
class Happening:
    """Which events are meant: a type, property filters, a time frame (``None`` is ever)."""

    type: str
    where: tuple[Filter, ...] = ()
    within: Frame | None = None

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"type": self.type}
        if self.where:
            shown["where"] = [one.to_json() for one in self.where]
        if self.within is not None:
            shown["within"] = self.within.to_json()
        return shown
