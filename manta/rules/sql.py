"""A rule as one SQL statement over a shard's tables: who does it hold for, set-wise.

Each condition on events becomes one scan, filtered by type and time, that yields a set of people;
conditions on the person become a predicate on ``profiles``. Within an ``all`` the cheap conditions
go first and each dear one looks only at the people still left (a semi-join that DuckDB pushes down
into the scan). Values are always bound as ``?`` in the order of the text, so that a caller may put
the statement into a larger one with parameters of its own before and after; the only names in the
text are those of ``manta.schema`` and checked attribute names.

The connection needs ``manta.rules.meaning.register``, and ``profiles`` a column for each attribute:
``manta.rules.scope.without_unknown`` leaves out those of which nobody has a value yet. The
statement says the same of a person as ``manta.rules.closure`` does; a property test holds them to
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from manta.rules.meaning import plus
from manta.rules.nodes import (
    BUCKET_PARTS,
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
    children_of,
)
from manta.rules.sql_events import INDEXED_MAX, Source, event, event_time, last_messages, near
from manta.rules.sql_keyed import keyed
from manta.rules.sql_sequences import sequence
from manta.rules.sql_tests import EVERYBODY, NOBODY, Sql, Subject, join, negation, value_test
from manta.rules.terms import BUILT_IN
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTE_PREFIX


@dataclass(frozen=True)
class Compiled:
    """A statement and the values of its ``?``, in order."""

    sql: str
    params: list[Any] = field(default_factory=list)


def compile_sql(
    rule: Rule,
    now: datetime,
    zone: str = "UTC",
    among: Iterable[int] | None = None,
    has_past: bool = False,
) -> Compiled:
    """Selects ``subscriber_id`` of the people for whom the rule holds at ``now``.

    ``zone`` is the workspace's time zone, for people without one of their own. ``among`` restricts
    the answer, and the work, to these people. ``has_past``: events have left this database and are
    kept as sums (``manta.rules.loading.has_past``); never so of the lake, which holds them all.
    """
    return _Statement(now, zone, among, has_past).select(rule, "SELECT p.subscriber_id", "")


def compile_count(
    rule: Rule,
    now: datetime,
    zone: str = "UTC",
    among: Iterable[int] | None = None,
    has_past: bool = False,
) -> Compiled:
    """Selects the one number: how many people the rule holds for."""
    return _Statement(now, zone, among, has_past).select(rule, "SELECT count(*)", "")


def compile_sample(
    rule: Rule,
    now: datetime,
    size: int,
    zone: str = "UTC",
    salt: str = "sample",
    has_past: bool = False,
) -> Compiled:
    """Selects ``subscriber_id`` of up to ``size`` people, the same ones for the same salt."""
    order = "ORDER BY md5_number_lower(concat(?::VARCHAR, ':', p.subscriber_id)), 1 LIMIT ?"
    return _Statement(now, zone, None, has_past).select(
        rule, "SELECT p.subscriber_id", order, salt, size
    )


# How dear a condition is: those on the person, then events by how far they narrow, then what looks
# at several of them together.
_ON_PERSON, _NARROWING, _SUBTRACTING, _MESSAGES = range(4)


def _cost(rule: Rule) -> int:
    if isinstance(rule, Event):
        return _SUBTRACTING if rule.holds_for_none else _NARROWING
    if isinstance(rule, EventTime):
        return _NARROWING
    if isinstance(rule, LastMessages | Sequence | Keyed):
        return _MESSAGES
    inner = max((_cost(child) for child in children_of(rule)), default=_ON_PERSON)
    return max(inner, _SUBTRACTING) if isinstance(rule, Not) and inner else inner


class _Statement:
    """Gathers the common table expressions of one statement, in the order of their parameters."""

    def __init__(
        self, now: datetime, zone: str, among: Iterable[int] | None, has_past: bool
    ) -> None:
        self._now = now
        self._zone = zone
        self._expressions: list[tuple[str, Sql]] = []
        self._known: dict[tuple[Rule, str | None], tuple[str, bool]] = {}
        self._zones = False
        self._events = Source("events", now, zone, has_past=has_past)
        self._among: str | None = None
        if among is not None:
            these = list(among)
            ids = Sql("SELECT unnest(?::BIGINT[]) AS subscriber_id", these)
            self._among = self._add("among", ids)
            if 0 < len(these) <= INDEXED_MAX:
                self._events = replace(self._events, table=self._add("near", near(these)))

    def select(self, rule: Rule, head: str, tail: str, *tail_params: Any) -> Compiled:
        people = self._people(Sql(head), self._predicate(rule, self._among), self._among)
        parts = [
            Sql(f"{name} AS {'MATERIALIZED ' if name == 'near' else ''}(") + body + Sql(")")
            for name, body in self._expressions
        ]
        whole = (Sql("WITH ") + join(", ", parts) + Sql(" ") if parts else Sql("")) + people
        whole += Sql(f" {tail}".rstrip(), *tail_params)
        return Compiled(whole.text, list(whole.params))

    def _add(self, name: str, body: Sql) -> str:
        self._expressions.append((name, body))
        return name

    def _add_set(self, body: Sql) -> str:
        return self._add(f"s{len(self._expressions)}", body)

    def _people(self, head: Sql, predicate: Sql, universe: str | None) -> Sql:
        """A selection from profiles; zones are joined only where the predicate asks for them."""
        source = Sql(" FROM profiles p")
        if predicate.today:
            if not self._zones:
                self._zones = True
                zones = Sql(
                    "SELECT time_zone, manta_day(?::TIMESTAMP, coalesce(time_zone, ''), ?::VARCHAR)"
                    " AS today FROM (SELECT DISTINCT time_zone FROM profiles)",
                    self._now,
                    self._zone,
                )
                self._add("zones", zones)
            source += Sql(" JOIN zones z ON z.time_zone IS NOT DISTINCT FROM p.time_zone")
        where = [predicate] if predicate is not EVERYBODY else []
        if universe is not None:
            where.insert(0, _in(universe))
        return head + source + (Sql(" WHERE ") + join(" AND ", where) if where else Sql(""))

    # -- predicates over profiles p ----------------------------------------------------------------

    def _predicate(self, rule: Rule, universe: str | None) -> Sql:
        """A boolean over ``profiles p`` (NULL is false), right for the people of the universe."""
        if isinstance(rule, All):
            return self._all(rule, universe)
        if isinstance(rule, AnyOf):
            if not rule.children:
                return NOBODY
            return _any(self._predicate(child, universe) for child in rule.children)
        if isinstance(rule, ExactlyOne):
            ones = [
                Sql("coalesce(") + self._predicate(child, universe) + Sql(", false)::INTEGER")
                for child in rule.children
            ]
            return Sql("(") + join(" + ", ones) + Sql(" = 1)") if ones else NOBODY
        if isinstance(rule, Not):
            return negation(self._predicate(rule.child, universe))
        if isinstance(rule, Attribute):
            return self._attribute(rule)
        if isinstance(rule, Bucket):
            return _bucket(rule)
        if isinstance(rule, HasBeen):
            return self._has_been(rule)
        return self._in_set(rule, universe)

    def _all(self, rule: All, universe: str | None) -> Sql:
        """Cheap conditions narrow the universe of the dearer ones, stage by stage."""
        children = sorted(rule.children, key=_cost)
        cheap = [child for child in children if _cost(child) == _ON_PERSON]
        dear = children[len(cheap) :]
        predicates = [self._predicate(child, universe) for child in cheap]
        if not dear:
            return _every(predicates)
        if predicates:
            stage = self._people(Sql("SELECT p.subscriber_id"), _every(predicates), universe)
            universe = self._add_set(stage)
        for child in dear[:-1]:
            universe = self._narrowed(child, universe)
        last = self._predicate(dear[-1], universe)
        return last if universe is None else _every([_in(universe), last])

    def _narrowed(self, child: Rule, universe: str | None) -> str:
        """The people of the universe for whom the child holds, as a set."""
        alike = isinstance(child, EventTime | Sequence | Keyed)
        if alike or (isinstance(child, Event) and not child.holds_for_none):
            return self._set(child, universe)[0]
        predicate = self._predicate(child, universe)
        return self._add_set(self._people(Sql("SELECT p.subscriber_id"), predicate, universe))

    def _attribute(self, rule: Attribute) -> Sql:
        column = attribute_column(rule.name)
        own_zone = Sql("coalesce(p.time_zone, '')")
        today = Sql("z.today", today=True)
        return value_test(rule.test, Subject(Sql(column), self._now, own_zone, self._zone, today))

    def _has_been(self, rule: HasBeen) -> Sql:
        """Since its time of change where it has one, else since the person was created."""
        limit = plus(self._now, -rule.span.delta)
        source = "SELECT subscriber_id FROM attribute_times WHERE name = ? AND changed_at "
        name = rule.attribute.name
        long_ago = _in(self._add_set(Sql(source + "<= ?::TIMESTAMP", name, limit)))
        lately = _in(self._add_set(Sql(source + "> ?::TIMESTAMP", name, limit)))
        since = Sql("(") + long_ago + Sql(" OR (p.created_at <= ?::TIMESTAMP AND NOT ", limit)
        since += lately + Sql("))")
        return _every([self._attribute(rule.attribute), since])

    # -- sets of people ----------------------------------------------------------------------------

    def _in_set(self, rule: Rule, universe: str | None) -> Sql:
        if isinstance(rule, Suppressed):
            return self._suppressed(rule)
        name, holds_within = self._set(rule, universe)
        inside = _in(name)
        return inside if holds_within else negation(inside)

    def _set(self, rule: Rule, universe: str | None) -> tuple[str, bool]:
        """A set of people, and whether the rule holds inside it or outside of it."""
        if (rule, universe) not in self._known:
            body, inside = self._body(rule, universe)
            self._known[rule, universe] = self._add_set(body), inside
        return self._known[rule, universe]

    def _body(self, rule: Rule, universe: str | None) -> tuple[Sql, bool]:
        if isinstance(rule, Event):
            return event(rule, self._events, universe), not rule.holds_for_none
        if isinstance(rule, EventTime):
            return event_time(rule, self._events, universe), True
        if isinstance(rule, LastMessages):
            return last_messages(rule, self._events, universe)
        if isinstance(rule, Sequence):
            return sequence(rule, self._events, universe, self._add_set), True
        if isinstance(rule, Keyed):
            return keyed(rule, self._events, universe, self._add_set), True
        if isinstance(rule, Consent):
            return _consent(rule, self._now), True
        if isinstance(rule, Prediction):
            return _prediction(rule, self._now), not rule.test.negated
        if isinstance(rule, Member):
            members = "SELECT subscriber_id FROM memberships WHERE list_contains(segments, ?"
            return Sql(members + "::INTEGER)", rule.segment), True
        raise TypeError(f"no SQL for {type(rule).__name__}")

    def _suppressed(self, rule: Suppressed) -> Sql:
        alive = "channel = 'email' AND (expires_at IS NULL OR expires_at > ?::TIMESTAMP)"
        chosen = Sql(f"SELECT address FROM suppressions WHERE {alive}", self._now)
        if rule.reason is not None:
            chosen += Sql(" AND reason = ?", rule.reason)
        return Sql("lower(p.email) IN (") + chosen + Sql(")")


def attribute_column(name: str) -> str:
    """The value of an attribute or built-in field, over ``profiles p``."""
    if name == "email_domain":
        return "CASE WHEN contains(p.email, '@') THEN split_part(p.email, '@', -1) END"
    if name in BUILT_IN:
        return f"p.{name}"
    if not ATTRIBUTE_NAME.fullmatch(name):
        raise ValueError(f"not an attribute's name: {name!r}")
    return f'p."{ATTRIBUTE_PREFIX}{name}"'


def _in(name: str) -> Sql:
    return Sql(f"p.subscriber_id IN (SELECT subscriber_id FROM {name})")


def _every(predicates: list[Sql]) -> Sql:
    kept = [one for one in predicates if one is not EVERYBODY]
    if not kept:
        return EVERYBODY
    return kept[0] if len(kept) == 1 else Sql("(") + join(" AND ", kept) + Sql(")")


def _any(predicates: Any) -> Sql:
    return Sql("(") + join(" OR ", list(predicates)) + Sql(")")


def _bucket(rule: Bucket) -> Sql:
    hashed = "md5_number_lower(concat(?::VARCHAR, ':', p.subscriber_id))"
    return Sql(f"{hashed} % {BUCKET_PARTS} BETWEEN ? AND ?", rule.salt, rule.start, rule.end - 1)


def _consent(rule: Consent, now: datetime) -> Sql:
    condition = "channel = ? AND topic = ? AND status = ?"
    source = f"SELECT subscriber_id FROM consents WHERE {condition}"
    found = Sql(source, rule.channel, rule.topic, rule.status)
    if rule.status != "pending":
        return found
    return found + Sql(" AND (expires_at IS NULL OR expires_at > ?::TIMESTAMP)", now)


def _prediction(rule: Prediction, now: datetime) -> Sql:
    """The people for whom the positive form of the test holds."""
    subject = Subject(Sql("t.value"), now, Sql("''"), "UTC", Sql("NULL"))
    found = Sql("SELECT t.subscriber_id FROM predictions t WHERE t.name = ? AND ", rule.name)
    return found + value_test(replace(rule.test, negated=False), subject)
