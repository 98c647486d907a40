"""Rules written in Python, for notebooks: the same checked tree, without JSON.

    from manta.rules.build import attr, did, last_messages

    quiet_buyers = did("purchased").where("item", "equals", "sku-1").within(days=30) \\
        & last_messages(3).opened("none")
    in_oslo = attr("city").equals("Oslo") | ~attr("city").is_set()

``&``, ``|`` and ``~`` combine. A built rule is JSON in the making: ``to_json()`` gives it, and
``checked(attributes)`` the ``Rule``, with the errors that ``manta.rules.tree.parse`` gives. Each
operator of docs/rules.md is a method of the same name (``in`` is ``in_``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

from manta.rules.nodes import Rule
from manta.rules.terms import COMPARISONS, OPERATORS, UNITS, moment_json
from manta.rules.tree import parse
from manta.schema import AttributeType

_OPERATORS = frozenset(name for names in OPERATORS.values() for name in names)


class Built:
    """A condition that is not checked yet."""

    def __init__(self, json: dict[str, Any]) -> None:
        self._json = json

    def __and__(self, other: Built) -> Built:
        return Built({"all": [*_parts(self, "all"), *_parts(other, "all")]})

    def __or__(self, other: Built) -> Built:
        return Built({"any": [*_parts(self, "any"), *_parts(other, "any")]})

    def __invert__(self) -> Built:
        return Built({"not": self.to_json()})

    def __bool__(self) -> bool:
        raise TypeError("combine conditions with & | ~ and not with and, or, not")

    def to_json(self) -> dict[str, Any]:
        return self._json

    def checked(self, attributes: Mapping[str, AttributeType]) -> Rule:
        """The checked rule. Raises ``InvalidRequest`` like ``parse``."""
        return parse(self.to_json(), attributes)


def _parts(built: Built, kind: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = built.to_json().get(kind, [built.to_json()])
    return parts


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in (sorted(value) if isinstance(value, set) else value)]
    return moment_json(value) if isinstance(value, date | datetime) else value


def _test(operator: str, values: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """``equals("x")``, ``between(1, 2)``, ``in_("a", "b")``, ``in_the_last(days=3)``."""
    if named:
        return {"operator": operator, "value": {name: _plain(one) for name, one in named.items()}}
    many = operator.removeprefix("not_") in ("in", "between", "contains_any", "contains_all")
    if many:
        given = values[0] if len(values) == 1 and not isinstance(values[0], str) else values
        return {"operator": operator, "value": _plain(given)}
    if not values:
        return {"operator": operator}
    (value,) = values
    return {"operator": operator, "value": _plain(value)}


class _Subject:
    def __init__(self, name: str, kind: str = "attribute") -> None:
        self._name = name
        self._kind = kind

    def __getattr__(self, name: str) -> Callable[..., Built]:
        operator = name.rstrip("_")
        if operator not in _OPERATORS:
            raise AttributeError(f"no operator {name!r}; there are {', '.join(sorted(_OPERATORS))}")

        def test(*values: Any, **named: Any) -> Built:
            return Built({self._kind: {"name": self._name, **_test(operator, values, named)}})

        return test


def attr(name: str) -> Any:
    """An attribute or built-in field; call the operator on it."""
    return _Subject(name)


def prediction(name: str) -> Any:
    """A prediction, as ``prediction("churn").at_least(0.7)``."""
    return _Subject(name, "prediction")


class Happened(Built):
    """An event: ``where``, a time frame and a measure may be added in any order."""

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        super().__init__({kind: dict(fields)})
        self._kind, self._fields = kind, dict(fields)

    def _with(self, **more: Any) -> Happened:
        return Happened(self._kind, {**self._fields, **more})

    def where(self, property_name: str, operator: str, *values: Any, **named: Any) -> Happened:
        one = {"property": property_name, **_test(operator, values, named)}
        return self._with(where=[*self._fields.get("where", ()), one])

    def within(self, **span: int) -> Happened:
        """In the last ``days=30`` (minutes, hours, days, weeks)."""
        return self._with(within={"last": _span(span)})

    def at_least_ago(self, **span: int) -> Happened:
        return self._with(within={"at_least_ago": _span(span)})

    def before(self, moment: date | str) -> Happened:
        return self._with(within={"before": _plain(moment)})

    def after(self, moment: date | str) -> Happened:
        return self._with(within={"after": _plain(moment)})

    def between(self, first: date | str, last: date | str) -> Happened:
        return self._with(within={"between": [_plain(first), _plain(last)]})

    def times(self, operator: str, number: int) -> Happened:
        return self._with(count={"operator": operator, "value": number})

    def total(self, operator: str, number: float, of: str = "amount") -> Happened:
        return self._with(sum={"property": of, "operator": operator, "value": number})


def step(type: str, absent: bool = False, **within: int) -> Happened:
    """One step of ``sequence``: ``step("purchased", days=3)`` follows within three days."""
    fields: dict[str, Any] = {"type": type}
    if within:
        fields["within"] = _span(within)
    return Happened("event", {**fields, "absent": True} if absent else fields)


def sequence(*steps: Happened) -> Happened:
    """Events in this order; its frame is added as that of an event is."""
    return Happened("sequence", {"steps": [one.to_json()["event"] for one in steps]})


def keyed(by: str, rule: Built) -> Built:
    """The rule of the events that share a value of the property ``by``."""
    return Built({"keyed": {"by": by, "rule": rule.to_json()}})


def has_been(attribute: Built, **span: int) -> Built:
    """``has_been(attr("plan").equals("free"), days=30)``"""
    return Built({"has_been": {**attribute.to_json(), "for": _span(span)}})


def _span(span: Mapping[str, int]) -> dict[str, int]:
    if len(span) != 1 or not span.keys() <= UNITS.keys():
        raise TypeError(f"one of {', '.join(UNITS)}, as in days=30")
    return dict(span)


def did(type: str) -> Happened:
    return Happened("event", {"type": type})


def did_not(type: str) -> Happened:
    return did(type).times("equals", 0)


def first_time(type: str) -> Happened:
    return Happened("first_time", {"type": type})


def last_time(type: str) -> Happened:
    return Happened("last_time", {"type": type})


class LastSent:
    """The last messages: say what was done with ``any``, ``all``, ``none`` or how many of them."""

    def __init__(self, number: int, **more: str) -> None:
        self._fields: dict[str, Any] = {"number": number, **more}

    def _were(self, action: str, which: str, number: int | None) -> Built:
        counted = which in COMPARISONS
        shown = {"operator": which, "value": number} if counted else which
        return Built({"last_messages": {**self._fields, "which": shown, "were": action}})

    def opened(self, which: str = "any", number: int | None = None) -> Built:
        return self._were("opened", which, number)

    def clicked(self, which: str = "any", number: int | None = None) -> Built:
        return self._were("clicked", which, number)

    def ignored(self, which: str = "any", number: int | None = None) -> Built:
        return self._were("ignored", which, number)


def last_messages(number: int, **more: str) -> LastSent:
    """``more``: ``kind="any"``, ``if_fewer="use_those"``."""
    return LastSent(number, **more)


def consent(topic: str, status: str = "subscribed", channel: str = "email") -> Built:
    return Built({"consent": {"channel": channel, "topic": topic, "status": status}})


def suppressed(reason: str | None = None) -> Built:
    fields = {"channel": "email"} if reason is None else {"channel": "email", "reason": reason}
    return Built({"suppressed": fields})


def member(segment: int) -> Built:
    return Built({"member": {"segment": segment}})


def bucket(salt: str, start: float, end: float) -> Built:
    """People from ``start`` to ``end`` per cent of a random draw that is fixed by its salt."""
    return Built({"bucket": {"salt": salt, "from": start, "to": end}})


everybody = Built({"all": []})
