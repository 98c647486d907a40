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

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from manta.rules.meaning import SETTLING, TICK, frame_range, micros
from manta.rules.nodes import (
    BUCKET_PARTS,
    BUILT_IN,
    All,
    AnyOf,
    Attribute,
    Bucket,
    Comparison,
    Consent,
    Event,
    EventTime,
    ExactlyOne,
    Happening,
    IfFewer,
    LastMessages,
    Member,
    Not,
    Rule,
    Suppressed,
    children_of,
)
from manta.rules.sql_tests import (
    COMPARISON_SQL,
    EVERYBODY,
    NOBODY,
    Sql,
    Subject,
    join,
    negation,
    number_property,
    property_test,
    value_test,
)
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTE_PREFIX, EVENTS


@dataclass(frozen=True)
class Compiled:
    """A statement and the values of its ``?``, in order."""

    sql: str
    params: list[Any] = field(default_factory=list)


def compile_sql(
    rule: Rule, now: datetime, zone: str = "UTC", among: Sequence[int] | None = None
) -> Compiled:
    """Selects ``subscriber_id`` of the people for whom the rule holds at ``now``.

    ``zone`` is the workspace's time zone, for people without one of their own. ``among`` restricts
    the answer, and the work, to these people.
    """
    return _Statement(now, zone, among).select(rule, "SELECT p.subscriber_id", "")


def compile_count(
    rule: Rule, now: datetime, zone: str = "UTC", among: Sequence[int] | None = None
) -> Compiled:
    """Selects the one number: how many people the rule holds for."""
    return _Statement(now, zone, among).select(rule, "SELECT count(*)", "")


def compile_sample(
    rule: Rule, now: datetime, size: int, zone: str = "UTC", salt: str = "sample"
) -> Compiled:
    """Selects ``subscriber_id`` of up to ``size`` people, the same ones for the same salt."""
    order = "ORDER BY md5_number_lower(concat(?::VARCHAR, ':', p.subscriber_id)), 1 LIMIT ?"
    return _Statement(now, zone, None).select(rule, "SELECT p.subscriber_id", order, salt, size)


INDEXED_MAX = 1_000  # people whose events are fetched through the index; a scan beats it for more


def near(ids: list[int]) -> Sql:
    """A table expression: all events of a few people, through the index on the person.

    DuckDB takes the index for a list of constants and no other condition, hence in a step of its
    own; the people's few events are then filtered in memory.
    """
    columns = ", ".join(EVENTS.column_names)
    places = ", ".join("?" * len(ids))
    return Sql(f"SELECT {columns} FROM events WHERE subscriber_id IN ({places})", *ids)


# How dear a condition is: those on the person, then events by how far they narrow, then messages.
_ON_PERSON, _NARROWING, _SUBTRACTING, _MESSAGES = range(4)


def _cost(rule: Rule) -> int:
    if isinstance(rule, Event):
        return _SUBTRACTING if rule.holds_for_none else _NARROWING
    if isinstance(rule, EventTime):
        return _NARROWING
    if isinstance(rule, LastMessages):
        return _MESSAGES
    inner = max((_cost(child) for child in children_of(rule)), default=_ON_PERSON)
    return max(inner, _SUBTRACTING) if isinstance(rule, Not) and inner else inner


class _Statement:
    """Gathers the common table expressions of one statement, in the order of their parameters."""

    def __init__(self, now: datetime, zone: str, among: Sequence[int] | None) -> None:
        self._now = now
        self._zone = zone
        self._expressions: list[tuple[str, Sql]] = []
        self._known: dict[tuple[Rule, str | None], str] = {}
        self._zones = False
        self._events_table = "events"
        self._among: str | None = None
        if among is not None:
            ids = Sql("SELECT unnest(?::BIGINT[]) AS subscriber_id", list(among))
            self._among = self._add("among", ids)
            if 0 < len(among) <= INDEXED_MAX:
                self._events_table = self._add("near", near(list(among)))

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
        if isinstance(child, EventTime) or (isinstance(child, Event) and not child.holds_for_none):
            return self._set(child, universe)[0]
        predicate = self._predicate(child, universe)
        return self._add_set(self._people(Sql("SELECT p.subscriber_id"), predicate, universe))

    def _attribute(self, rule: Attribute) -> Sql:
        if rule.name == "email_domain":
            column = "CASE WHEN contains(p.email, '@') THEN split_part(p.email, '@', -1) END"
        elif rule.name in BUILT_IN:
            column = f"p.{rule.name}"
        else:
            if not ATTRIBUTE_NAME.fullmatch(rule.name):
                raise ValueError(f"not an attribute's name: {rule.name!r}")
            column = f'p."{ATTRIBUTE_PREFIX}{rule.name}"'
        own_zone = Sql("coalesce(p.time_zone, '')")
        today = Sql("z.today", today=True)
        return value_test(rule.test, Subject(Sql(column), self._now, own_zone, self._zone, today))

    # -- sets of people ----------------------------------------------------------------------------

    def _in_set(self, rule: Rule, universe: str | None) -> Sql:
        if isinstance(rule, Suppressed):
            return self._suppressed(rule)
        name, holds_within = self._set(rule, universe)
        inside = _in(name)
        return inside if holds_within else negation(inside)

    def _set(self, rule: Rule, universe: str | None) -> tuple[str, bool]:
        """A set of people, and whether the rule holds inside it or outside of it."""
        if isinstance(rule, Event):
            body, inside = self._event(rule, universe), not rule.holds_for_none
        elif isinstance(rule, EventTime):
            body, inside = self._event_time(rule, universe), True
        elif isinstance(rule, LastMessages):
            body, inside = self._last_messages(rule, universe)
        elif isinstance(rule, Consent):
            condition = "channel = ? AND topic = ? AND status = ?"
            source = f"SELECT subscriber_id FROM consents WHERE {condition}"
            body, inside = Sql(source, rule.channel, rule.topic, rule.status), True
        elif isinstance(rule, Member):
            source = (
                "SELECT subscriber_id FROM memberships WHERE list_contains(segments, ?::INTEGER)"
            )
            body, inside = Sql(source, rule.segment), True
        else:
            raise TypeError(f"no SQL for {type(rule).__name__}")
        if (rule, universe) not in self._known:
            self._known[rule, universe] = self._add_set(body)
        return self._known[rule, universe], inside

    def _suppressed(self, rule: Suppressed) -> Sql:
        alive = "channel = 'email' AND (expires_at IS NULL OR expires_at > ?::TIMESTAMP)"
        chosen = Sql(f"SELECT address FROM suppressions WHERE {alive}", self._now)
        if rule.reason is not None:
            chosen += Sql(" AND reason = ?", rule.reason)
        return Sql("lower(p.email) IN (") + chosen + Sql(")")

    def _events(self, happening: Happening, universe: str | None, framed: bool = True) -> Sql:
        """FROM and WHERE over events ``e`` of a happening, by now, of people in the universe."""
        frame = happening.within if framed else None
        low, high = frame_range(frame, self._now)
        text = f" FROM {self._events_table} e WHERE e.type = ? AND e.occurred_at < ?::TIMESTAMP"
        found = Sql(text, happening.type, high)
        if low is not None:
            found += Sql(" AND e.occurred_at >= ?::TIMESTAMP", low)
        for one in happening.where:
            found += Sql(" AND ") + property_test(one, self._now, self._zone)
        return found + _of(universe)

    def _event(self, rule: Event, universe: str | None) -> Sql:
        """The people with such events for whom the answer is not that of people with none."""
        people = Sql("SELECT e.subscriber_id") + self._events(rule.happening, universe)
        people += Sql(" GROUP BY e.subscriber_id")
        if rule.sum_of is None:
            if (rule.comparison.operator, rule.comparison.value) == ("at_least", 1):
                return people
            measured, bound = Sql("count(*)"), Sql("?::BIGINT", int(rule.comparison.value))
        else:
            amount = number_property(rule.sum_of)
            limit = "::DOUBLE) <= 9e12::DOUBLE THEN CAST(round("
            measured = Sql("coalesce(sum(CASE WHEN abs(") + amount + Sql(limit) + amount
            measured += Sql(" * 1e6::DOUBLE) AS BIGINT) END), 0)")
            bound = Sql("?::HUGEINT", micros(rule.comparison.value))
        compared = measured + Sql(f" {COMPARISON_SQL[rule.comparison.operator]} ") + bound
        if rule.holds_for_none:
            compared = Sql("NOT (") + compared + Sql(")")
        return people + Sql(" HAVING ") + compared

    def _event_time(self, rule: EventTime, universe: str | None) -> Sql:
        low, high = frame_range(rule.happening.within, self._now)
        time = "min(e.occurred_at)" if rule.first else "max(e.occurred_at)"
        people = Sql("SELECT e.subscriber_id") + self._events(rule.happening, universe, False)
        people += Sql(f" GROUP BY e.subscriber_id HAVING {time} < ?::TIMESTAMP", high)
        return people if low is None else people + Sql(f" AND {time} >= ?::TIMESTAMP", low)

    def _last_messages(self, rule: LastMessages, universe: str | None) -> tuple[Sql, bool]:
        """People by their last settled messages, each joined to its first open and click."""
        settled = self._now - SETTLING + TICK
        kinds = ["marketing", "transactional"] if rule.kind == "any" else [rule.kind]
        sent = Sql(
            f"SELECT e.subscriber_id, e.message_key FROM {self._events_table} e"
            " WHERE e.type = 'sent'"
            f" AND e.item IN ({', '.join('?' * len(kinds))}) AND e.occurred_at < ?::TIMESTAMP",
            *kinds,
            settled,
        )
        sent += _of(universe) + Sql(
            " QUALIFY row_number() OVER (PARTITION BY e.subscriber_id"
            " ORDER BY e.occurred_at DESC, e.message_key DESC NULLS LAST) <= ?",
            rule.number,
        )
        types = {"opened": ["opened"], "clicked": ["clicked"], "ignored": ["opened", "clicked"]}
        wanted = types[rule.were]
        acted = Sql(
            f"SELECT DISTINCT e.subscriber_id, e.message_key FROM {self._events_table} e"
            f" WHERE e.type IN ({', '.join('?' * len(wanted))}) AND e.occurred_at < ?::TIMESTAMP"
            " AND e.message_key IS NOT NULL",
            *wanted,
            self._now + TICK,
        )
        acted += _of(universe)
        joined = Sql("SELECT m.subscriber_id FROM (") + sent + Sql(") m LEFT JOIN (") + acted
        joined += Sql(
            ") a ON a.subscriber_id = m.subscriber_id AND a.message_key = m.message_key"
            " GROUP BY m.subscriber_id HAVING "
        )
        condition = _messages_condition(rule)
        if rule.holds(0, 0):  # also of people without any: keep the others' complement
            return joined + negation(condition), False
        return joined + condition, True


def _messages_condition(rule: LastMessages) -> Sql:
    matching = "count(a.message_key)"
    if rule.were == "ignored":
        matching = "(count(*) - count(a.message_key))"
    if isinstance(rule.which, Comparison):
        operator = COMPARISON_SQL[rule.which.operator]
        condition = Sql(f"{matching} {operator} ?::BIGINT", int(rule.which.value))
    else:
        condition = Sql(
            {
                "any": f"{matching} > 0",
                "all": f"{matching} = count(*)",
                "none": f"{matching} = 0",
            }[rule.which]
        )
    if rule.if_fewer is IfFewer.FALSE:
        return Sql("(count(*) = ? AND ", rule.number) + condition + Sql(")")
    if rule.if_fewer is IfFewer.TRUE:
        return Sql("(count(*) < ? OR ", rule.number) + condition + Sql(")")
    return condition


def _in(name: str) -> Sql:
    return Sql(f"p.subscriber_id IN (SELECT subscriber_id FROM {name})")


def _of(universe: str | None) -> Sql:
    if universe is None:
        return Sql("")
    return Sql(f" AND e.subscriber_id IN (SELECT subscriber_id FROM {universe})")


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
