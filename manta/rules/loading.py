"""Gathers the people that rules are to be evaluated for by closure: few people, a few reads.

Only what the rules can look at is read: their event types (through the index on the person), their
attributes, consents, suppressions, memberships and predictions; opens and clicks by machines are
left out, as the SQL of a rule leaves them out. Of events that have left memory come the sums that
are kept, for rules that they serve. All reads belong to one committed state when the
database is a reader's cursor in one transaction, or the writer's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from manta.command import Database
from manta.rules.kept import ITEMS, MONTHS, PURCHASED, Kept, KeptSum
from manta.rules.person import Consented, EventRow, Person, Suppression
from manta.rules.scope import Touches
from manta.rules.sql_events import HUMAN, INDEXED_MAX, near
from manta.rules.terms import BUILT_IN
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTE_PREFIX

PEOPLE_MAX = 10_000

_INDEXED_MAX = 500  # people up to whom an index beats a scan of a state table
# Each column costs its share: the rows of a person lie all over the table.
_READ = ("subscriber_id", "type", *EventRow._fields, "human")
_EVENTS = """
WITH near AS MATERIALIZED ({near})
SELECT subscriber_id, type, occurred_at, campaign_id, message_key, item, amount, properties
FROM near
WHERE type IN (SELECT unnest(?::VARCHAR[])) AND occurred_at >= ?::TIMESTAMP AND {human}
ORDER BY subscriber_id, type, occurred_at, message_key NULLS FIRST
"""


def load(
    database: Database,
    ids: Sequence[int],
    wanted: Touches,
    since: datetime | None = None,
) -> dict[int, Person]:
    """The people of ``ids`` that exist, each with what rules of these touches look at.

    ``since`` leaves out older events: now − the reach of the rules, where that is bounded and none
    of them asks for last messages. At most ``PEOPLE_MAX`` people at once.
    """
    if len(ids) > PEOPLE_MAX:
        raise ValueError(f"{len(ids)} people at once; at most {PEOPLE_MAX}")
    these = list(ids)
    profiles = _profiles(database, these, wanted)
    events = _events(database, these, wanted, since)
    consents = _consents(database, these) if wanted.consents else {}
    memberships = _memberships(database, these) if wanted.segments else {}
    suppressions = _suppressions(database, profiles) if wanted.suppressions else {}
    times = _named(database, "attribute_times", "changed_at", these, wanted.held)
    predictions = _named(database, "predictions", "value", these, wanted.predictions)
    past = _past(database, these, wanted.past) if wanted.past and has_past(database) else {}
    return {
        id: Person(
            id,
            profile,
            events.get(id, {}),
            consents.get(id, {}),
            memberships.get(id, frozenset()),
            suppressions.get(id, ()),
            times.get(id, {}),
            predictions.get(id, {}),
            past.get(id, {}),
        )
        for id, profile in profiles.items()
    }


def has_past(database: Database) -> bool:
    """Whether events have left the memory of this shard and are kept as sums."""
    return bool(database.rows("SELECT 1 FROM event_months LIMIT 1"))


def _past(
    database: Database, ids: list[int], wanted: Iterable[Kept]
) -> dict[int, dict[Kept, list[KeptSum]]]:
    """Two scans at most: of the tables' keys no index helps to find a person's rows."""
    people = "subscriber_id IN (SELECT unnest(?::BIGINT[]))"
    columns = "subscriber_id, first_at, last_at, events, amount"
    rows: list[tuple[Any, ...]] = []
    types = sorted(kept.type for kept in wanted if kept.table == MONTHS)
    if types:
        of_types = "type IN (SELECT unnest(?::VARCHAR[]))"
        sql = (
            f"SELECT '{MONTHS}', type, {columns}, NULL FROM {MONTHS} WHERE {of_types} AND {people}"
        )
        rows += database.rows(sql, [types, ids])
    if any(kept.table == ITEMS for kept in wanted):
        sql = f"SELECT '{ITEMS}', '{PURCHASED}', {columns}, item FROM {ITEMS} WHERE {people}"
        rows += database.rows(sql, [ids])
    found: dict[int, dict[Kept, list[KeptSum]]] = {}
    for table, type_, id, *row in rows:
        found.setdefault(id, {}).setdefault(Kept(table, type_), []).append(KeptSum._make(row))
    return found


def columns_of_profiles(database: Database) -> list[str]:
    """The columns that the profiles have here: an attribute gets one with its first value."""
    return [name for name, *_ in database.rows("DESCRIBE profiles")]


def _columns(attributes: Iterable[str]) -> list[str]:
    own = sorted(set(attributes) - BUILT_IN.keys())
    for name in own:
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise ValueError(f"not an attribute's name: {name!r}")
    built_in = [name for name in BUILT_IN if name != "email_domain"]
    return [*built_in, *(ATTRIBUTE_PREFIX + name for name in own)]


def _profiles(database: Database, ids: list[int], wanted: Touches) -> dict[int, dict[str, Any]]:
    there = columns_of_profiles(database)
    columns = [name for name in _columns(wanted.attributes) if name in there]
    chosen = ", ".join(f'"{column}"' for column in columns)
    these, params = _these(ids)
    sql = f"SELECT subscriber_id, {chosen} FROM profiles WHERE subscriber_id IN {these}"
    return {
        id: dict(zip(columns, values, strict=True)) for id, *values in database.rows(sql, params)
    }


def _these(ids: list[int]) -> tuple[str, list[Any]]:
    """What ``subscriber_id IN`` is to be followed by, and its parameters. DuckDB takes an index for
    a list of constants only."""
    if len(ids) <= _INDEXED_MAX:
        return f"({', '.join('?' * len(ids))})", list(ids)
    return "(SELECT unnest(?::BIGINT[]))", [ids]


def _events(
    database: Database, ids: list[int], wanted: Touches, since: datetime | None
) -> dict[int, dict[str, list[EventRow]]]:
    if not wanted.event_types:
        return {}
    found: dict[int, dict[str, list[EventRow]]] = {}
    chosen = [sorted(wanted.event_types), since or datetime.min]
    for start in range(0, len(ids), INDEXED_MAX):
        close = near(ids[start : start + INDEXED_MAX], _READ)
        sql = _EVENTS.format(near=close.text, human=HUMAN)
        for id, type_, *row in database.rows(sql, [*close.params, *chosen]):
            found.setdefault(id, {}).setdefault(type_, []).append(EventRow._make(row))
    return found


def _consents(database: Database, ids: list[int]) -> dict[int, dict[tuple[str, str], Consented]]:
    these, params = _these(ids)
    sql = (
        "SELECT subscriber_id, channel, topic, status, expires_at FROM consents"
        f" WHERE subscriber_id IN {these}"
    )
    found: dict[int, dict[tuple[str, str], Consented]] = {}
    for id, channel, topic, *record in database.rows(sql, params):
        found.setdefault(id, {})[channel, topic] = Consented(*record)
    return found


def _named(
    database: Database, table: str, column: str, ids: list[int], names: Iterable[str]
) -> dict[int, dict[str, Any]]:
    """What a table holds under these names, for each person."""
    wanted = sorted(names)
    if not wanted:
        return {}
    these, params = _these(ids)
    sql = (
        f"SELECT subscriber_id, name, {column} FROM {table}"
        f" WHERE subscriber_id IN {these} AND name IN (SELECT unnest(?::VARCHAR[]))"
    )
    found: dict[int, dict[str, Any]] = {}
    for id, name, value in database.rows(sql, [*params, wanted]):
        found.setdefault(id, {})[name] = value
    return found


def _memberships(database: Database, ids: list[int]) -> dict[int, frozenset[int]]:
    these, params = _these(ids)
    sql = f"SELECT subscriber_id, segments FROM memberships WHERE subscriber_id IN {these}"
    return {id: frozenset(segments or ()) for id, segments in database.rows(sql, params)}


def _suppressions(
    database: Database, profiles: Mapping[int, Mapping[str, Any]]
) -> dict[int, tuple[Suppression, ...]]:
    """Found by the addresses, which are folded as the statement of a rule does it."""
    emails = [one["email"] for one in profiles.values() if one["email"] is not None]
    sql = (
        "SELECT a.email, s.reason, s.expires_at FROM suppressions s JOIN"
        " (SELECT DISTINCT unnest(?::VARCHAR[]) AS email) a ON s.address = lower(a.email)"
        " WHERE s.channel = 'email'"
    )
    by_email: dict[str, tuple[Suppression, ...]] = {}
    for email, reason, expires_at in database.rows(sql, [emails]) if emails else ():
        by_email[email] = (*by_email.get(email, ()), Suppression(reason, expires_at))
    return {id: by_email[one["email"]] for id, one in profiles.items() if one["email"] in by_email}
