"""A keyed rule as SQL: one group for each person and key, and the whole rule over each group.

Counts, sums and times are aggregates with a filter each, so that one scan answers all of them;
sequences are sets of person and key beside it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from manta.rules.meaning import HUMAN_TYPES, TICK
from manta.rules.nodes import (
    All,
    AnyOf,
    Event,
    EventTime,
    ExactlyOne,
    Keyed,
    Not,
    Rule,
    Sequence,
)
from manta.rules.scope import reach
from manta.rules.sql_events import HUMAN, Source, measured, of_people, timed
from manta.rules.sql_sequences import AddSet, sequence
from manta.rules.sql_tests import NOBODY, Sql, join, key_text, negation

_COLUMNS = (
    "e.subscriber_id, e.type, e.occurred_at, e.campaign_id, e.item, e.amount, e.properties, e.human"
)


def keyed(rule: Keyed, source: Source, universe: str | None, add_set: AddSet) -> Sql:
    """The people for whom the rule holds of some key; a person with several comes several times."""
    universe = _narrowed(rule, source, universe, add_set)
    own = replace(
        source,
        table=add_set(_events(rule, source, universe)),
        ids=("subscriber_id", "key"),
    )
    group = _Group(own, add_set)
    holds = group.condition(rule.rule)
    found = Sql(f"SELECT e.subscriber_id FROM {own.table} e{group.joins}")
    return found + Sql(" GROUP BY e.subscriber_id, e.key HAVING ") + holds


def _narrowed(rule: Keyed, source: Source, universe: str | None, add_set: AddSet) -> str | None:
    """Only people with an event, of whatever key, that the rule needs are looked at: keys are dear.

    Of several such conditions that with the shortest time frame narrows most.
    """
    parts = rule.rule.children if isinstance(rule.rule, All) else (rule.rule,)
    needed = [one for one in parts if isinstance(one, Event) and not one.holds_for_none]
    if not needed:
        return universe
    backs = {one: reach(source.now, one).back or timedelta.max for one in needed}
    happening = min(needed, key=lambda one: backs[one]).happening
    found = Sql("SELECT DISTINCT e.subscriber_id")
    return add_set(found + source.matching(happening, universe, happening.within))


def _events(rule: Keyed, source: Source, universe: str | None) -> Sql:
    """The events by now of the types that are asked for, each with its key."""
    types = sorted({one.type for one in rule.happenings})
    found = Sql(f"SELECT {_COLUMNS}, ") + key_text(rule.by)
    found += Sql(f" AS key FROM {source.table} e WHERE e.type IN ({', '.join('?' * len(types))})")
    found.params += tuple(types)
    found += Sql(" AND e.occurred_at < ?::TIMESTAMP", source.now + TICK)
    if any(one in HUMAN_TYPES for one in types):
        found += Sql(f" AND {HUMAN}")
    back = reach(source.now, rule).back
    if back is not None:
        found += Sql(" AND e.occurred_at >= ?::TIMESTAMP", source.now - back)
    return Sql("SELECT * FROM (") + found + of_people(universe) + Sql(") WHERE key IS NOT NULL")


class _Group:
    """A rule over the events ``e`` of one person and key; what it joins to them."""

    def __init__(self, source: Source, add_set: AddSet) -> None:
        self._source = source
        self._add_set = add_set
        self.joins = ""

    def condition(self, rule: Rule) -> Sql:
        if isinstance(rule, Not):
            return negation(self.condition(rule.child))
        if isinstance(rule, All | AnyOf | ExactlyOne):
            return self._group(rule)
        if isinstance(rule, Event):
            happening = rule.happening
            return measured(rule, self._source.passes(happening, happening.within))
        if isinstance(rule, EventTime):
            passes = self._source.passes(rule.happening, None)
            return Sql("(") + timed(rule, self._source.now, passes) + Sql(")")
        assert isinstance(rule, Sequence)
        name = self._add_set(sequence(rule, self._source, None, self._add_set))
        self.joins += f" LEFT JOIN {name} ON {self._source.same(name, 'e')}"
        return Sql(f"bool_or({name}.subscriber_id IS NOT NULL)")

    def _group(self, rule: All | AnyOf | ExactlyOne) -> Sql:
        parts = [self.condition(child) for child in rule.children]
        if isinstance(rule, ExactlyOne):
            ones = [Sql("coalesce(") + part + Sql(", false)::INTEGER") for part in parts]
            return Sql("(") + join(" + ", ones) + Sql(" = 1)") if ones else NOBODY
        if not parts:
            return Sql("true" if isinstance(rule, All) else "false")
        word = " AND " if isinstance(rule, All) else " OR "
        return Sql("(") + join(word, parts) + Sql(")")
