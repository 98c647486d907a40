"""The checked tree of a rule: what a question about a person can consist of.

A rule is a value: frozen, hashable, compared by content. ``manta.rules.tree.parse`` is the only
way from outside into it, so whoever holds a ``Rule`` holds one whose names, types and limits have
been checked; both back ends (``sql``, ``closure``) rely on that. ``to_json`` is canonical:
``parse(rule.to_json(), attributes) == rule``. What each node means is written in docs/rules.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from manta.rules.terms import (
    Comparison,
    Frame,
    Happening,
    Property,
    Span,
    Test,
    number_json,
)


class Rule:
    """Any node that is true or false of a person. Compared and hashed by content."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class All(Rule):
    children: tuple[Rule, ...]

    def to_json(self) -> dict[str, Any]:
        return {"all": [child.to_json() for child in self.children]}


@dataclass(frozen=True, slots=True)
class AnyOf(Rule):
    children: tuple[Rule, ...]

    def to_json(self) -> dict[str, Any]:
        return {"any": [child.to_json() for child in self.children]}


@dataclass(frozen=True, slots=True)
class ExactlyOne(Rule):
    children: tuple[Rule, ...]

    def to_json(self) -> dict[str, Any]:
        return {"exactly_one": [child.to_json() for child in self.children]}


@dataclass(frozen=True, slots=True)
class Not(Rule):
    child: Rule

    def to_json(self) -> dict[str, Any]:
        return {"not": self.child.to_json()}


@dataclass(frozen=True, slots=True)
class Attribute(Rule):
    name: str
    test: Test

    def to_json(self) -> dict[str, Any]:
        return {"attribute": {"name": self.name, **self.test.to_json()}}


ONCE = Comparison("at_least", 1.0)


@dataclass(frozen=True, slots=True)
class Event(Rule):
    """How often something happened, or what it came to (``sum_of``), compared with a number."""

    happening: Happening
    comparison: Comparison = ONCE
    sum_of: Property | None = None

    @property
    def holds_for_none(self) -> bool:
        return self.comparison.holds(0)

    def to_json(self) -> dict[str, Any]:
        shown = self.happening.to_json()
        if self.sum_of is not None:
            shown["sum"] = {"property": self.sum_of.name, **self.comparison.to_json()}
        elif self.comparison != ONCE:
            shown["count"] = self.comparison.to_json()
        return {"event": shown}


@dataclass(frozen=True, slots=True)
class EventTime(Rule):
    """The first or last time that something happened lies in a time frame."""

    first: bool
    happening: Happening

    def to_json(self) -> dict[str, Any]:
        return {"first_time" if self.first else "last_time": self.happening.to_json()}


class IfFewer(StrEnum):
    """What to answer for a person who was sent fewer settled messages than asked about."""

    FALSE = "false"
    TRUE = "true"
    USE_THOSE = "use_those"


@dataclass(frozen=True, slots=True)
class LastMessages(Rule):
    """Of the last ``number`` settled messages, how many were opened, clicked or ignored."""

    number: int
    were: str
    which: str | Comparison  # any | all | none, or a comparison of how many
    kind: str = "marketing"
    if_fewer: IfFewer = IfFewer.FALSE

    def holds(self, sent: int, matching: int) -> bool:
        if sent < self.number and self.if_fewer is not IfFewer.USE_THOSE:
            return self.if_fewer is IfFewer.TRUE
        if isinstance(self.which, Comparison):
            return self.which.holds(matching)
        return {"any": matching > 0, "all": matching == sent, "none": matching == 0}[self.which]

    def to_json(self) -> dict[str, Any]:
        which = self.which.to_json() if isinstance(self.which, Comparison) else self.which
        shown: dict[str, Any] = {"number": self.number, "which": which, "were": self.were}
        if self.kind != "marketing":
            shown["kind"] = self.kind
        if self.if_fewer is not IfFewer.FALSE:
            shown["if_fewer"] = self.if_fewer.value
        return {"last_messages": shown}


@dataclass(frozen=True, slots=True)
class Consent(Rule):
    channel: str
    topic: str
    status: str

    def to_json(self) -> dict[str, Any]:
        return {
            "consent": {"channel": self.channel, "topic": self.topic, "status": self.status},
        }


@dataclass(frozen=True, slots=True)
class Suppressed(Rule):
    """The person's address is on the suppression list now, for ``reason`` if one is given."""

    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        shown = {"channel": "email"}
        return {"suppressed": shown if self.reason is None else {**shown, "reason": self.reason}}


@dataclass(frozen=True, slots=True)
class Member(Rule):
    segment: int

    def to_json(self) -> dict[str, Any]:
        return {"member": {"segment": self.segment}}


BUCKET_PARTS = 10_000  # hundredths of a per cent


@dataclass(frozen=True, slots=True)
class Bucket(Rule):
    """A fixed pseudo-random share of people; bounds in hundredths of a per cent, half-open."""

    salt: str
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        bounds = {"from": number_json(self.start / 100), "to": number_json(self.end / 100)}
        return {"bucket": {"salt": self.salt, **bounds}}


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a sequence, at most ``within`` after the event before it, where that is said.

    An ``absent`` step is the wait for an event that did not come.
    """

    happening: Happening  # without a time frame
    within: Span | None = None
    absent: bool = False

    def to_json(self) -> dict[str, Any]:
        shown = self.happening.to_json()
        if self.within is not None:
            shown["within"] = self.within.to_json()
        return {**shown, "absent": True} if self.absent else shown


@dataclass(frozen=True, slots=True)
class Sequence(Rule):
    """Events that followed one another, the whole of it complete within a time frame."""

    steps: tuple[Step, ...]
    within: Frame | None = None

    @property
    def present(self) -> tuple[Step, ...]:
        """The steps that are events."""
        return self.steps[:-1] if self.steps[-1].absent else self.steps

    @property
    def absent(self) -> Step | None:
        """The last step, where it is the wait for an event that did not come."""
        return self.steps[-1] if self.steps[-1].absent else None

    def to_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"steps": [step.to_json() for step in self.steps]}
        if self.within is not None:
            shown["within"] = self.within.to_json()
        return {"sequence": shown}


@dataclass(frozen=True, slots=True)
class HasBeen(Rule):
    """The attribute passes its test, and its value has stood unchanged for at least a span."""

    attribute: Attribute
    span: Span

    def to_json(self) -> dict[str, Any]:
        return {"has_been": {**self.attribute.to_json(), "for": self.span.to_json()}}


@dataclass(frozen=True, slots=True)
class Keyed(Rule):
    """The rule holds of the events that share some value, the key, of a property."""

    by: Property
    rule: Rule

    @property
    def happenings(self) -> tuple[Happening, ...]:
        """Everything that the rule asks for."""
        return tuple(one for node in walk(self.rule) for one in happenings_of(node))

    @property
    def holds_for_none(self) -> bool:
        """Whether the rule would hold for a key without events in any of its time frames."""
        return _holds_for_none(self.rule)

    def to_json(self) -> dict[str, Any]:
        return {"keyed": {"by": self.by.name, "rule": self.rule.to_json()}}


@dataclass(frozen=True, slots=True)
class Prediction(Rule):
    """A number that was predicted of the person, such as the probability of churn."""

    name: str
    test: Test

    def to_json(self) -> dict[str, Any]:
        return {"prediction": {"name": self.name, **self.test.to_json()}}


def happenings_of(rule: Rule) -> tuple[Happening, ...]:
    """What a condition on events asks for; steps of a sequence are without a time frame."""
    if isinstance(rule, Event | EventTime):
        return (rule.happening,)
    return tuple(step.happening for step in rule.steps) if isinstance(rule, Sequence) else ()


def _holds_for_none(rule: Rule) -> bool:
    if isinstance(rule, Event):
        return rule.holds_for_none
    answers = [_holds_for_none(child) for child in children_of(rule)]
    if isinstance(rule, All):
        return all(answers)
    if isinstance(rule, AnyOf):
        return any(answers)
    if isinstance(rule, ExactlyOne):
        return sum(answers) == 1
    return isinstance(rule, Not) and not answers[0]


def children_of(rule: Rule) -> tuple[Rule, ...]:
    if isinstance(rule, All | AnyOf | ExactlyOne):
        return rule.children
    if isinstance(rule, Not):
        return (rule.child,)
    if isinstance(rule, HasBeen):
        return (rule.attribute,)
    return (rule.rule,) if isinstance(rule, Keyed) else ()


def walk(rule: Rule) -> list[Rule]:
    """All nodes of a rule, parents before children."""
    nodes = [rule]
    for node in nodes:
        nodes.extend(children_of(node))
    return nodes
