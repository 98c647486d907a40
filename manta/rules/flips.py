"""When time alone could change an answer, for everybody at once, as one SQL statement.

The statement names for each person a **lower bound**, later than now, of the instant at which time
alone could change the answer of a rule; people it leaves out have none. For whoever the closure of
``manta.rules.closure`` names an instant the statement does too, and never a later one. Where it can
be had cheaply the instant is the closure's own; elsewhere it is earlier, which costs an evaluation
of that person by closure, and that gives the exact one:

- of an event type all conditions share one scan of the longest window, and one group by person;
- of events that have left memory the first and last times that are kept count as events would;
- chains of sequences and keys are not looked for: their last steps count as if they stood alone;
- a calendar day that is more than two days off is waited for until two days before it, since the
  zones lie within a day of UTC; nearer ones until the next day of the person's zone.

For many rules ask of ``AnyOf(rules)``: what they have in common is scanned once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from manta.rules.closure_events import width_of
from manta.rules.kept import kept_of
from manta.rules.meaning import HUMAN_TYPES, SETTLING, TICK, by_days, next_day_start, plus, zone_of
from manta.rules.nodes import (
    Attribute,
    Consent,
    Event,
    EventTime,
    HasBeen,
    LastMessages,
    Rule,
    Sequence,
    Suppressed,
    walk,
)
from manta.rules.scope import touches
from manta.rules.sql import Compiled, attribute_column
from manta.rules.sql_events import BY_PERSON, of_kept
from manta.rules.sql_tests import Sql, join, property_test, property_value
from manta.rules.terms import Filter, Operator, Test
from manta.rules.values import moves
from manta.schema import AttributeType

MARGIN_DAYS = 2
_NO_TIME = timedelta(0)


def compile_flips(rule: Rule, now: datetime, zone: str = "UTC", has_past: bool = False) -> Compiled:
    """Selects ``subscriber_id`` and ``flips_at`` of those whose answer time alone could change.

    The connection and ``profiles`` are to be as for ``compile_sql``, and so is ``has_past``.
    """
    nodes = list(dict.fromkeys(walk(rule)))
    clock = _Clock(now, zone)
    parts = [part for type_ in _types(nodes) for part in _of_events(type_, clock)]
    parts += _of_past(nodes, clock) if has_past else []
    parts += _of_profiles(nodes, clock)
    parts += _of_held([node for node in nodes if isinstance(node, HasBeen)], clock)
    parts += _of_records(nodes, clock)
    if not parts:
        return Compiled("SELECT subscriber_id, NULL::TIMESTAMP AS flips_at FROM profiles LIMIT 0")
    head = "SELECT subscriber_id, least(min(flips_at), ?::TIMESTAMP) AS flips_at FROM ("
    whole = Sql(head, datetime.max)
    whole += join(" UNION ALL ", parts)
    whole += Sql(
        ") WHERE flips_at IS NOT NULL AND subscriber_id IN (SELECT subscriber_id FROM profiles)"
        " GROUP BY subscriber_id"
    )
    return Compiled(whole.text, list(whole.params))


@dataclass(frozen=True)
class _Clock:
    now: datetime
    zone: str  # of the workspace

    def ahead(self, moment: Sql) -> Sql:
        """The instant where it lies after now, else NULL."""
        return Sql("CASE WHEN ") + moment + Sql(" > ?::TIMESTAMP THEN ", self.now) + moment + _END

    def day(self, shift: int) -> date:
        """The day in UTC, and so many after it."""
        return self.now.date() + timedelta(days=shift)


_END = Sql(" END")


def _least(terms: list[Sql]) -> Sql:
    """The least of these that is not NULL; what is said twice is asked once."""
    terms = list({(term.text, repr(term.params)): term for term in terms}.values())
    return terms[0] if len(terms) == 1 else Sql("least(") + join(", ", terms) + Sql(")")


def _later(moment: Sql, delta: timedelta) -> Sql:
    return moment + Sql(" + to_microseconds(?::BIGINT)", delta // TICK)


# -- events ----------------------------------------------------------------------------------------


@dataclass
class _Type:
    """How the events of one type move answers: so long after an event that passes its filters, and
    with the dates among its properties. And each begins to count at its own time."""

    name: str
    delays: dict[tuple[tuple[Filter, ...], timedelta], None] = field(default_factory=dict)
    dates: dict[Filter, None] = field(default_factory=dict)

    def add(self, where: tuple[Filter, ...], delays: Iterable[timedelta]) -> None:
        moving = [one for one in where if moves(one.test)]
        self.dates.update(dict.fromkeys(moving))
        for delay in delays:
            if delay:
                self.delays[() if moving else where, delay] = None


def _types(nodes: list[Rule]) -> list[_Type]:
    types = {name: _Type(name) for name in sorted(touches(*nodes).event_types)}
    for node in nodes:
        if isinstance(node, Event | EventTime):
            width = width_of(node.happening.within) or _NO_TIME
            types[node.happening.type].add(node.happening.where, [width])
        elif isinstance(node, LastMessages):
            types["sent"].add((), [SETTLING])
        elif isinstance(node, Sequence):
            _add_sequence(node, types)
    return list(types.values())


def _add_sequence(rule: Sequence, types: dict[str, _Type]) -> None:
    wait = rule.absent.within.delta if rule.absent and rule.absent.within else _NO_TIME
    width = width_of(rule.within) or _NO_TIME
    delays = (wait, wait + width)
    if any(moves(one.test) for step in rule.steps for one in step.happening.where):
        for step in rule.steps:  # an event that passes no filter now may do so later
            types[step.happening.type].add((), delays)
            types[step.happening.type].add(step.happening.where, ())
    else:
        last = rule.present[-1].happening
        types[last.type].add(last.where, delays)


def _of_events(type_: _Type, clock: _Clock) -> list[Sql]:
    now = clock.now
    terms = [Sql("min(e.occurred_at) FILTER (WHERE e.occurred_at > ?::TIMESTAMP)", now)]
    for where, delay in type_.delays:
        passes = [Sql("e.occurred_at > ?::TIMESTAMP", plus(now, -delay))]
        passes += [property_test(one, now, clock.zone) for one in where]
        first = Sql("min(e.occurred_at) FILTER (WHERE ") + join(" AND ", passes) + Sql(")")
        terms.append(_later(first, delay))
    longest = max((delay for _, delay in type_.delays), default=_NO_TIME)
    scan = Sql("SELECT e.subscriber_id, ") + _least(terms) + _from_events(type_.name)
    scan += Sql(" AND e.occurred_at > ?::TIMESTAMP", plus(now, -longest))
    parts = [scan + Sql(" GROUP BY e.subscriber_id")]
    tomorrow = Sql("?::TIMESTAMP", next_day_start(zone_of(None, clock.zone), now))
    for one in type_.dates:
        value = property_value(one.property, one.test)
        turn = _least(_date_turns(one.test, value, clock, tomorrow))
        part = Sql("SELECT e.subscriber_id, min(") + turn + Sql(")") + _from_events(type_.name)
        parts.append(part + Sql(" GROUP BY e.subscriber_id"))
    return parts


def _from_events(type_: str) -> Sql:
    human = f" AND {BY_PERSON}" if type_ in HUMAN_TYPES else ""
    return Sql(f" AS flips_at FROM events e WHERE e.type = ?{human}", type_)


def _of_past(nodes: list[Rule], clock: _Clock) -> list[Sql]:
    parts = []
    for node in nodes:
        kept = kept_of(node)
        if not isinstance(node, Event | EventTime) or kept is None:
            continue
        width = width_of(node.happening.within)
        if width is None:
            continue
        since = plus(clock.now, -width)
        first = Sql("min(e.first_at) FILTER (WHERE e.first_at > ?::TIMESTAMP)", since)
        earliest = Sql("least(") + first + Sql(", min(e.last_at))")
        part = Sql("SELECT e.subscriber_id, ") + _later(earliest, width) + Sql(" AS flips_at")
        part += Sql(f" FROM {kept.table} e WHERE e.last_at > ?::TIMESTAMP", since)
        part += Sql(" AND ") + of_kept(node, kept, clock.now, clock.zone)
        parts.append(part + Sql(" GROUP BY e.subscriber_id"))
    return parts


# -- people ----------------------------------------------------------------------------------------


def _of_profiles(nodes: list[Rule], clock: _Clock) -> list[Sql]:
    dates = [one for one in nodes if isinstance(one, Attribute) and _moving_date(one.test)]
    tomorrow = Sql("z.next_day")
    terms = [
        turn
        for one in dates
        for turn in _date_turns(one.test, Sql(attribute_column(one.name)), clock, tomorrow)
    ]
    if not terms:
        return []
    found = Sql("SELECT p.subscriber_id, ") + _least(terms) + Sql(" AS flips_at FROM profiles p")
    zones = Sql(
        " JOIN (SELECT time_zone,"
        " manta_next_day(?::TIMESTAMP, coalesce(time_zone, ''), ?::VARCHAR) AS next_day"
        " FROM (SELECT DISTINCT time_zone FROM profiles)) z",
        clock.now,
        clock.zone,
    )
    return [found + zones + Sql(" ON z.time_zone IS NOT DISTINCT FROM p.time_zone")]


def _moving_date(test: Test) -> bool:
    return test.type is AttributeType.DATE and moves(test)


def _of_held(nodes: list[HasBeen], clock: _Clock) -> list[Sql]:
    parts = []
    for name in sorted({node.attribute.name for node in nodes}):
        spans = {node.span.delta for node in nodes if node.attribute.name == name}
        since = Sql("coalesce(t.changed_at, p.created_at)")
        terms = [clock.ahead(_later(since, span)) for span in sorted(spans)]
        found = Sql("SELECT p.subscriber_id, ") + _least(terms) + Sql(" AS flips_at")
        found += Sql(" FROM profiles p LEFT JOIN attribute_times t")
        parts.append(found + Sql(" ON t.subscriber_id = p.subscriber_id AND t.name = ?", name))
    return parts


def _of_records(nodes: list[Rule], clock: _Clock) -> list[Sql]:
    """Consents that wait, suppressions that expire."""
    parts = []
    if any(isinstance(node, Suppressed) for node in nodes):
        source = (
            "SELECT p.subscriber_id, s.expires_at AS flips_at FROM profiles p JOIN suppressions s"
            " ON s.address = lower(p.email)"
            " WHERE s.channel = 'email' AND s.expires_at > ?::TIMESTAMP"
        )
        parts.append(Sql(source, clock.now))
    for node in nodes:
        if isinstance(node, Consent) and node.status == "pending":
            source = (
                "SELECT subscriber_id, expires_at AS flips_at FROM consents WHERE channel = ?"
                " AND topic = ? AND status = 'pending' AND expires_at > ?::TIMESTAMP"
            )
            parts.append(Sql(source, node.channel, node.topic, clock.now))
    return parts


# -- dates -----------------------------------------------------------------------------------------


def _date_turns(test: Test, value: Sql, clock: _Clock, tomorrow: Sql) -> list[Sql]:
    """Bounds of when a moving date test of this value may turn; NULL where it never does.

    ``tomorrow`` is when the next day begins in the zone that counts.
    """
    if not by_days(test):
        delta = test.value.delta
        back = -delta if test.operator is Operator.IN_THE_NEXT else delta
        return [clock.ahead(value), clock.ahead(_later(value, back))]
    if test.operator is Operator.ANNIVERSARY_TODAY:
        return [_anniversary_turn(value, shift, clock, tomorrow) for shift in (0, 1)]
    days = test.value.days
    if test.operator is Operator.ANNIVERSARY_IN_THE_NEXT:
        return [_anniversary_turn(value, shift, clock, tomorrow) for shift in (-days, 0)]
    back = -days if test.operator is Operator.IN_THE_NEXT else days
    return [_day_turn(value, shift, clock, tomorrow) for shift in (0, back)]


def _day_turn(value: Sql, shift: int, clock: _Clock, tomorrow: Sql) -> Sql:
    """Of the day of the value and ``shift`` days: that in UTC, of which the person's is at most one
    off and begins within a day of its beginning there."""
    day = Sql("(CAST(") + value + Sql(" AS DATE) + ?::INTEGER)", shift)
    past = Sql(" WHEN ") + day + Sql(" >= ?::DATE THEN ", clock.day(-MARGIN_DAYS))
    return _far(day, clock) + past + tomorrow + _END


def _anniversary_turn(value: Sql, shift: int, clock: _Clock, tomorrow: Sql) -> Sql:
    """Of the next anniversary, ``shift`` days after it. One from the 29th on counts as the 28th, so
    that every month has it: it turns up to three days after that."""
    cut = clock.day(-MARGIN_DAYS - 3 - shift)
    month, day = Sql("month(") + value + Sql(")"), Sql("least(day(") + value + Sql("), 28)")
    years = Sql(" >= ? THEN ?::BIGINT ELSE ?::BIGINT END, ", _in_year(cut), cut.year, cut.year + 1)
    turn = Sql("(make_date(CASE WHEN ") + month + Sql(" * 100 + ") + day + years
    turn += month + Sql(", ") + day + Sql(") + ?::INTEGER)", shift)
    return _far(turn, clock) + Sql(" WHEN ") + value + Sql(" IS NOT NULL THEN ") + tomorrow + _END


def _in_year(day: date) -> int:
    return day.month * 100 + day.day


def _far(day: Sql, clock: _Clock) -> Sql:
    """Of a day that is far off: when it is time to look closer."""
    before = Sql(" - ?::INTEGER AS TIMESTAMP)", MARGIN_DAYS)
    far = Sql("CASE WHEN ") + day + Sql(" > ?::DATE THEN CAST(", clock.day(MARGIN_DAYS))
    return far + day + before
