"""The conditions on events as SQL: each is one scan by type and time that yields a set of people.

``Source`` says where events are read and for whom they are told apart: ``subscriber_id`` of the
events themselves, or person and key of a keyed rule. Opens and clicks that a machine did in a
person's name never count. Where events have left memory, what is kept of them counts too, for the
conditions that it serves (``manta.rules.kept``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from manta.rules.kept import MONTHS, Kept, kept_of, overlaps
from manta.rules.meaning import (
    HUMAN_LEAST,
    HUMAN_TYPES,
    SETTLING,
    TICK,
    frame_range,
    micros,
)
from manta.rules.nodes import Event, EventTime, IfFewer, LastMessages
from manta.rules.sql_tests import (
    COMPARISON_SQL,
    Sql,
    join,
    negation,
    number_property,
    property_test,
)
from manta.rules.terms import Comparison, Frame, Happening
from manta.schema import EVENTS

INDEXED_MAX = 1_000  # people whose events are fetched through the index; a scan beats it for more

BY_PERSON = f"coalesce(human, 1.0::DOUBLE) >= {HUMAN_LEAST}::DOUBLE"
# Holds of the events that count: those of other types, and opens and clicks by a person.
HUMAN = f"(type NOT IN ({', '.join(repr(one) for one in HUMAN_TYPES)}) OR {BY_PERSON})"


def near(ids: list[int], columns: tuple[str, ...] = EVENTS.column_names) -> Sql:
    """A table expression: all events of a few people, through the index on the person.

    DuckDB takes the index for a list of constants and no other condition, hence in a step of its
    own; the people's few events are then filtered in memory.
    """
    places = ", ".join("?" * len(ids))
    return Sql(f"SELECT {', '.join(columns)} FROM events WHERE subscriber_id IN ({places})", *ids)


def of_people(universe: str | None) -> Sql:
    """Restricts events ``e`` to the people of a set."""
    if universe is None:
        return Sql("")
    return Sql(f" AND e.subscriber_id IN (SELECT subscriber_id FROM {universe})")


@dataclass(frozen=True)
class Source:
    """Where the events of a condition are, at what now, and whose they are together."""

    table: str
    now: datetime
    zone: str
    ids: tuple[str, ...] = ("subscriber_id",)
    has_past: bool = False  # whether there are sums of events that have left memory

    def kept_of(self, rule: Event | EventTime) -> Kept | None:
        """The sums that count for the rule, where there are any."""
        return kept_of(rule) if self.has_past else None

    def named(self, alias: str) -> str:
        return ", ".join(f"{alias}.{name}" for name in self.ids)

    def same(self, one: str, other: str) -> str:
        """Holds of rows of two aliases that belong together."""
        return " AND ".join(f"{one}.{name} = {other}.{name}" for name in self.ids)

    def passes(self, happening: Happening, frame: Frame | None) -> Sql:
        """Holds of an event ``e`` that is meant and lies in the frame, by now."""
        low, high = frame_range(frame, self.now)
        found = Sql("e.type = ? AND e.occurred_at < ?::TIMESTAMP", happening.type, high)
        if low is not None:
            found += Sql(" AND e.occurred_at >= ?::TIMESTAMP", low)
        if happening.type in HUMAN_TYPES:
            found += Sql(f" AND {BY_PERSON}")
        for one in happening.where:
            found += Sql(" AND ") + property_test(one, self.now, self.zone)
        return found

    def matching(
        self, happening: Happening, universe: str | None, frame: Frame | None = None
    ) -> Sql:
        """FROM and WHERE over events ``e`` of a happening, of people in the universe."""
        found = Sql(f" FROM {self.table} e WHERE ") + self.passes(happening, frame)
        return found + of_people(universe)


# -- how often, how much, when ---------------------------------------------------------------------


def event(rule: Event, source: Source, universe: str | None) -> Sql:
    """The people with such events for whom the answer is not that of people with none."""
    kept = source.kept_of(rule)
    if kept is not None:
        return _event_ever(rule, kept, source, universe)
    people = Sql(f"SELECT {source.named('e')}")
    people += source.matching(rule.happening, universe, rule.happening.within)
    people += Sql(f" GROUP BY {source.named('e')}")
    if rule.sum_of is None and (rule.comparison.operator, rule.comparison.value) == ("at_least", 1):
        return people
    return people + Sql(" HAVING ") + _differs(rule, _measure(rule))


def _differs(rule: Event, measure: Sql) -> Sql:
    """The answer is not that of people without such events."""
    compared = _compared(rule, measure)
    return Sql("NOT (") + compared + Sql(")") if rule.holds_for_none else compared


def measured(rule: Event, only: Sql | None = None) -> Sql:
    """The comparison over a group of events ``e``, or over ``only`` those that pass."""
    return _compared(rule, _measure(rule, only))


def _compared(rule: Event, measure: Sql) -> Sql:
    operator, value = COMPARISON_SQL[rule.comparison.operator], rule.comparison.value
    if rule.sum_of is None:
        return measure + Sql(f" {operator} ?::BIGINT", int(value))
    return measure + Sql(f" {operator} ?::HUGEINT", micros(value))


def _measure(rule: Event, only: Sql | None = None) -> Sql:
    chosen = Sql(" FILTER (WHERE ") + only + Sql(")") if only else Sql("")
    if rule.sum_of is None:
        return Sql("count(*)") + chosen
    amount = number_property(rule.sum_of)
    limit = "::DOUBLE) <= 9e12::DOUBLE THEN CAST(round("
    total = Sql("coalesce(sum(CASE WHEN abs(") + amount + Sql(limit) + amount
    return total + Sql(" * 1e6::DOUBLE) AS BIGINT) END)") + chosen + Sql(", 0)")


def event_time(rule: EventTime, source: Source, universe: str | None) -> Sql:
    kept = source.kept_of(rule)
    if kept is not None:
        return _event_time_ever(rule, kept, source, universe)
    people = Sql(f"SELECT {source.named('e')}") + source.matching(rule.happening, universe)
    return people + Sql(f" GROUP BY {source.named('e')} HAVING ") + timed(rule, source.now)


def timed(rule: EventTime, now: datetime, only: Sql | None = None) -> Sql:
    """Whether the first or last of a group of events, or of those that pass, is in the frame."""
    low, high = frame_range(rule.happening.within, now)
    time = Sql("min(e.occurred_at)" if rule.first else "max(e.occurred_at)")
    if only:
        time += Sql(" FILTER (WHERE ") + only + Sql(")")
    within = time + Sql(" < ?::TIMESTAMP", high)
    return within if low is None else within + Sql(" AND ") + time + Sql(" >= ?::TIMESTAMP", low)


# -- what is kept of events that have left memory --------------------------------------------------

_MICROS = "CASE WHEN isfinite(e.amount) THEN CAST(round(e.amount * 1e6::DOUBLE) AS HUGEINT) END"


def _event_ever(rule: Event, kept: Kept, source: Source, universe: str | None) -> Sql:
    """``event`` over memory and sums: each person's measure of both, added up."""
    people = Sql("SELECT m.subscriber_id FROM (SELECT e.subscriber_id, ") + _measure(rule)
    people += Sql(" AS measure")
    people += source.matching(rule.happening, universe, rule.happening.within)
    of_sum = "e.events" if rule.sum_of is None else _MICROS
    people += Sql(f" GROUP BY e.subscriber_id UNION ALL SELECT e.subscriber_id, {of_sum}")
    people += _from_sums(rule, kept, source) + of_people(universe)
    total = Sql("coalesce(sum(m.measure), 0)")
    return people + Sql(") m GROUP BY m.subscriber_id HAVING ") + _differs(rule, total)


def _event_time_ever(rule: EventTime, kept: Kept, source: Source, universe: str | None) -> Sql:
    which, of_sum = ("min", "e.first_at") if rule.first else ("max", "e.last_at")
    people = Sql("SELECT e.subscriber_id FROM (SELECT e.subscriber_id,")
    people += Sql(f" {which}(e.occurred_at) AS occurred_at")
    people += source.matching(rule.happening, universe)
    people += Sql(f" GROUP BY e.subscriber_id UNION ALL SELECT e.subscriber_id, {of_sum}")
    people += _from_sums(rule, kept, source) + of_people(universe)
    return people + Sql(") e GROUP BY e.subscriber_id HAVING ") + timed(rule, source.now)


def _from_sums(rule: Event | EventTime, kept: Kept, source: Source) -> Sql:
    low, high = overlaps(rule, source.now)
    overlapping = Sql("e.first_at < ?::TIMESTAMP", high)
    if low > datetime.min:
        overlapping += Sql(" AND e.last_at >= ?::TIMESTAMP", low)
    meant = of_kept(rule, kept, source.now, source.zone)
    return Sql(f" FROM {kept.table} e WHERE ") + overlapping + Sql(" AND ") + meant


def of_kept(rule: Event | EventTime, kept: Kept, now: datetime, zone: str) -> Sql:
    """Holds of the sums ``e`` of the events that the rule means."""
    if kept.table == MONTHS:
        return Sql("e.type = ?", kept.type)
    return join(" AND ", [property_test(one, now, zone) for one in rule.happening.where])


# -- the last messages -----------------------------------------------------------------------------


def last_messages(rule: LastMessages, source: Source, universe: str | None) -> tuple[Sql, bool]:
    """People by their last settled messages, each joined to its first open and click; and whether
    they are those for whom the rule holds, or the others."""
    settled = source.now - SETTLING + TICK
    kinds = ["marketing", "transactional"] if rule.kind == "any" else [rule.kind]
    sent = Sql(
        f"SELECT e.subscriber_id, e.message_key FROM {source.table} e"
        " WHERE e.type = 'sent'"
        f" AND e.item IN ({', '.join('?' * len(kinds))}) AND e.occurred_at < ?::TIMESTAMP",
        *kinds,
        settled,
    )
    sent += of_people(universe) + Sql(
        " QUALIFY row_number() OVER (PARTITION BY e.subscriber_id"
        " ORDER BY e.occurred_at DESC, e.message_key DESC NULLS LAST) <= ?",
        rule.number,
    )
    types = {"opened": ["opened"], "clicked": ["clicked"], "ignored": ["opened", "clicked"]}
    each = (source.passes(Happening(type_), None) for type_ in types[rule.were])
    acted = Sql(f"SELECT DISTINCT e.subscriber_id, e.message_key FROM {source.table} e WHERE (")
    acted += join(" OR ", each) + Sql(") AND e.message_key IS NOT NULL") + of_people(universe)
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
