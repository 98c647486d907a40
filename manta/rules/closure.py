"""A rule as a Python function of one person: for the few people that an event touches.

``compile_closure`` turns the tree into nested functions once; each call then looks only at the
values it was given. It says the same of a person as the SQL of ``manta.rules.sql`` does.

``flips_at`` answers when to look again: a **lower bound**, later than now, of the instant at which
time alone could change the answer. Too early costs one evaluation; too late would be a bug, so each
condition names every instant at which it could move, and a combination takes the least of its
parts. ``None`` means that time alone never changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manta.rules.closure_events import Flips, Holds, Leaf, event, event_time, last_messages
from manta.rules.closure_sequences import sequence
from manta.rules.meaning import bucket_of, email_domain, plus, zone_of
from manta.rules.nodes import (
    All,
    AnyOf,
    Attribute,
    Bucket,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    HasBeen,
    Keyed,
    LastMessages,
    Member,
    Not,
    Prediction,
    Rule,
    Sequence,
    Suppressed,
)
from manta.rules.person import Consented, EventRow, Person, Suppression
from manta.rules.terms import BUILT_IN
from manta.rules.values import date_flips, moves, value_test
from manta.schema import ATTRIBUTE_PREFIX, AttributeType

__all__ = ["Closure", "Consented", "EventRow", "Person", "Suppression", "compile_closure"]

Keys = Callable[[Person, datetime], Iterator[str]]


@dataclass(frozen=True)
class Closure:
    """A compiled rule: call it with a person and now, ask it when to ask again."""

    _holds: Holds
    _flips: tuple[Flips, ...]
    _keys: tuple[Keys, ...] = ()

    @property
    def moves_with_time(self) -> bool:
        """Whether time alone can ever change an answer."""
        return bool(self._flips)

    def __call__(self, person: Person, now: datetime) -> bool:
        return self._holds(person, now)

    def flips_at(self, person: Person, now: datetime) -> datetime | None:
        """The earliest instant after ``now`` at which time alone could change the answer."""
        earliest: datetime | None = None
        for flips in self._flips:
            for moment in flips(person, now):
                if moment > now and (earliest is None or moment < earliest):
                    earliest = moment
        return earliest

    def keys(self, person: Person, now: datetime) -> tuple[str, ...]:
        """The keys for which the keyed conditions of the rule hold, those of all together."""
        return tuple(sorted({key for keys in self._keys for key in keys(person, now)}))


def compile_closure(rule: Rule, zone: str = "UTC") -> Closure:
    """The rule as a function; ``zone`` is the workspace's, for people without one of their own."""
    compiler = _Compiler(zone)
    return Closure(compiler.holds(rule), tuple(compiler.flips), tuple(compiler.keys))


class _Compiler:
    """Gathers, while it compiles, what moves with time and what has keys."""

    def __init__(self, zone: str) -> None:
        self._zone = zone
        self.flips: list[Flips] = []
        self.keys: list[Keys] = []

    def holds(self, rule: Rule) -> Holds:
        if isinstance(rule, All | AnyOf | ExactlyOne):
            return _group(rule, tuple(self.holds(child) for child in rule.children))
        if isinstance(rule, Not):
            inner = self.holds(rule.child)
            return lambda person, now: not inner(person, now)
        if isinstance(rule, Keyed):
            return self._keyed(rule)
        holds, moving = _LEAVES[type(rule)](rule, self._zone)
        if moving is not None:
            self.flips.append(moving)
        return holds

    def _keyed(self, rule: Keyed) -> Holds:
        inside = _Compiler(self._zone)
        inner, inner_flips = inside.holds(rule.rule), tuple(inside.flips)
        by, types = rule.by, sorted({one.type for one in rule.happenings})
        name = "\0".join((by.name, *types))

        def keys(person: Person, now: datetime) -> Iterator[str]:
            for key, part in person.by_key(by, types, name).items():
                if inner(part, now) and any(rows[0][0] <= now for rows in part.events.values()):
                    yield key

        def flips(person: Person, now: datetime) -> Iterator[datetime]:
            for part in person.by_key(by, types, name).values():
                for moving in inner_flips:
                    yield from moving(part, now)

        self.flips.append(flips)
        self.keys.append(keys)
        return lambda person, now: next(keys(person, now), None) is not None


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


def _has_been(rule: HasBeen, zone: str) -> Leaf:
    passes, turns = _attribute(rule.attribute, zone)
    name, span = rule.attribute.name, rule.span.delta

    def since(person: Person) -> datetime | None:
        return person.attribute_times.get(name) or person.profile.get("created_at")

    def holds(person: Person, now: datetime) -> bool:
        start = since(person)
        return start is not None and plus(start, span) <= now and passes(person, now)

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        start = since(person)
        if start is not None:
            yield plus(start, span)
            if turns is not None:
                yield from turns(person, now)

    return holds, flips


def _prediction(rule: Prediction, zone: str) -> Leaf:
    name, test, own = rule.name, value_test(rule.test), zone_of(None, zone)
    return lambda person, now: test(person.predictions.get(name), own, now), None


def _consent(rule: Consent, zone: str) -> Leaf:
    key, status = (rule.channel, rule.topic), rule.status
    if status != "pending":

        def settled(person: Person, now: datetime) -> bool:
            found = person.consents.get(key)
            return found is not None and found.status == status

        return settled, None

    def pending(person: Person, now: datetime) -> bool:
        found = person.consents.get(key)
        if found is None or found.status != status:
            return False
        return found.expires_at is None or found.expires_at > now

    def flips(person: Person, now: datetime) -> Iterator[datetime]:
        found = person.consents.get(key)
        if found is not None and found.status == "pending" and found.expires_at is not None:
            yield found.expires_at

    return pending, flips


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


_LEAVES: dict[type[Rule], Callable[[Any, str], Leaf]] = {
    Attribute: _attribute,
    Consent: _consent,
    Member: _member,
    Bucket: _bucket,
    Suppressed: _suppressed,
    HasBeen: _has_been,
    Prediction: _prediction,
    Event: event,
    EventTime: event_time,
    Sequence: sequence,
    LastMessages: last_messages,
}
