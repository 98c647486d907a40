"""What leaves memory with age, and what is kept of it.

Final ledger rows leave after 90 days and events after 400 (settings); of them stay counts of
accepted messages per person and day and of all messages per campaign, state and reason, and first,
last, number and sum of events per person, type and month, and of purchases per product: what rules
are answered from (``manta.rules.kept``), so opens and clicks of machines are not among them. The
rows themselves stay in the lake.

**Invariant:** each event, and each message of a campaign, is either in memory or counted in the
kept aggregates, never both. So the bound of memory is itself a row (table ``retention``), journaled
in one group with the aggregates of what it passes; whoever applies that group, live or in replay,
then drops what is older from memory. An event that comes in older than the bound is counted at once
and never enters memory. Recovery loads what is not older than the bound of its manifest.

Some things are not kept at all for longer than a period (``Expire``): bodies in quarantine (30
days), anonymous people of whom nothing was heard (400 days), and, where a workspace says so,
events: those leave the kept aggregates here and the lake by ``manta.store.maintenance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Command, Context, Database, Decision, Op, Push
from manta.delivery.ledger import FINAL, State
from manta.people.identities import ANONYMOUS_ID
from manta.privacy.commands import removed
from manta.rules.meaning import MICRO_LIMIT
from manta.rules.sql_events import HUMAN
from manta.schema import EVENTS, HISTORY_EVENTS, LEDGER, TABLES
from manta.store.settings import ShardSettings

Bounds = dict[str, datetime]
SILENT_MAX = 10_000


class RetentionResult(NamedTuple):
    """See ``manta.store.shard.HookResult``."""

    pushes: tuple[Push, ...]
    commands: tuple[Command, ...]
    next_wake: datetime | None


_TOTALS = (
    "min({t}first_at) AS first_at, max({t}last_at) AS last_at, "
    "sum({t}events)::BIGINT AS events, "
    # In whole millionths, as rules add amounts up: so the order of the sums does not matter.
    "sum(CASE WHEN isfinite({t}amount) THEN CAST(round({t}amount * 1e6) AS HUGEINT) END)::DOUBLE"
    " / 1e6 AS amount"
)
_OLD = (
    "SELECT subscriber_id, date_trunc('month', occurred_at)::TIMESTAMP AS month, type, item, "
    "occurred_at AS first_at, occurred_at AS last_at, 1 AS events,"
    f" CASE WHEN abs(amount) <= {MICRO_LIMIT}::DOUBLE THEN amount END AS amount"
    f" FROM {{source}} WHERE {HUMAN}"
)


def bounds(database: Database) -> Bounds:
    """Table → the instant before which its rows are not in memory."""
    found: Bounds = {}
    for name, since in database.rows("SELECT name, kept_since FROM retention"):
        found[name] = since
    return found


def is_old(table: str) -> str:
    """The condition, with the bound as its one parameter, under which a row leaves memory."""
    if table == EVENTS.name:
        return "occurred_at < ?"
    finals = ", ".join(f"'{state.value}'" for state in FINAL)
    return f"changed_at < ? AND state IN ({finals})"


@dataclass(frozen=True)
class Retain:
    """Move the bounds on to the present day and keep aggregates of what they pass."""

    settings: ShardSettings
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        today = datetime.combine(context.now.date(), time.min)
        hot_days = self.settings.hot_event_days
        wanted = {
            EVENTS.name: today
            - timedelta(days=min(hot_days, self.settings.event_days or hot_days)),
            LEDGER.name: today - timedelta(days=self.settings.final_ledger_days),
        }
        before = bounds(database)
        moved = {
            name: at
            for name, at in wanted.items()
            if database.rows(f"SELECT 1 FROM {name} WHERE {is_old(name)} LIMIT 1", [at])
        }
        if not moved:  # an idle shard writes nothing, not even once a day
            return Decision(before)
        changes: list[Change] = []
        if EVENTS.name in moved:
            old = f"(SELECT * FROM events WHERE {is_old(EVENTS.name)})"
            changes += _event_totals(database, old, [moved[EVENTS.name]], None)
        if LEDGER.name in moved:
            changes.append(_ledger_days(database, moved[LEDGER.name]))
            changes.append(_ledger_campaigns(database, moved[LEDGER.name]))
        rows = {"name": list(moved), "kept_since": list(moved.values())}
        changes.append(Change("retention", Op.UPSERT, pa.table(rows)))
        return Decision(before | moved, tuple(changes))


@dataclass(frozen=True)
class Expire:
    """Delete what is past its period. Answers how many rows."""

    settings: ShardSettings
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        today, settings = datetime.combine(context.now.date(), time.min), self.settings
        bodies = database.table(
            "SELECT quarantine_id FROM quarantine WHERE received_at < ?",
            [today - timedelta(days=settings.quarantine_days)],
        )
        changes = [Change("quarantine", Op.DELETE, bodies)]
        silent = _silent(database, today - timedelta(days=settings.anonymous_days))
        if silent:
            changes += removed(database, context, silent)
        if settings.event_days:
            bound = today - timedelta(days=settings.event_days)
            for table, column in (("event_months", "last_at"), ("purchased_items", "last_at")):
                rows = database.table(
                    f"SELECT {', '.join(TABLES[table].key)} FROM {table} WHERE {column} < ?",
                    [bound],
                )
                changes.append(Change(table, Op.DELETE, rows))
        changes = [change for change in changes if change.rows.num_rows]
        return Decision(sum(change.rows.num_rows for change in changes), tuple(changes))


def _silent(database: Database, since: datetime) -> list[int]:
    """Anonymous people who were created before and did nothing since; so many at once at most."""
    rows = database.rows(
        "SELECT p.subscriber_id FROM profiles p WHERE p.email IS NULL AND p.created_at < ?"
        " AND p.subscriber_id NOT IN (SELECT subscriber_id FROM identities WHERE kind <> ?)"
        " AND p.subscriber_id NOT IN (SELECT subscriber_id FROM events WHERE occurred_at >= ?)"
        " AND p.subscriber_id NOT IN (SELECT subscriber_id FROM event_months WHERE last_at >= ?)"
        " ORDER BY 1 LIMIT ?",
        [since, ANONYMOUS_ID, since, since, SILENT_MAX],
    )
    return [id for (id,) in rows]


def count_late_events(
    database: Database, changes: Sequence[Change], kept_since: datetime
) -> list[Change]:
    """The aggregates with the events among these changes that are too old for memory."""
    late = [
        Change(c.table, c.op, old)
        for c in changes
        if c.table == EVENTS.name and (old := _older(c.rows, kept_since)).num_rows
    ]
    if not late:
        return []
    rows = pa.concat_tables([change.rows for change in late], promote_options="default")
    for name, kind in (("item", pa.string()), ("amount", pa.float64()), ("human", pa.float64())):
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    return _event_totals(database, "_late", [], rows)


def _older(rows: pa.Table, instant: datetime) -> pa.Table:
    times = rows.column("occurred_at")
    history = pa.array(HISTORY_EVENTS, pa.string())
    is_late = pc.less(times, pa.scalar(instant, pa.timestamp("us")))
    is_hot = pc.invert(pc.is_in(rows.column("type"), value_set=history))
    return rows.filter(pc.and_(is_late, is_hot))


def _event_totals(
    database: Database, source: str, params: list[datetime], late: pa.Table | None
) -> list[Change]:
    """The aggregates of these events together with what is kept already, as whole rows."""
    tables = {} if late is None else {"_late": late}
    changes = []
    for table, keys, only in (
        ("event_months", "subscriber_id, month, type", ""),
        ("purchased_items", "subscriber_id, item", "WHERE type = 'purchased' AND item IS NOT NULL"),
    ):
        new = f"SELECT {keys}, {_TOTALS.format(t='')} FROM ({_OLD.format(source=source)}) {only}"
        new = f"{new} GROUP BY {keys}"
        kept = f"SELECT k.* FROM {table} k SEMI JOIN fresh USING ({keys})"
        both = f"(FROM fresh UNION ALL BY NAME {kept})"
        sql = f"WITH fresh AS ({new}) SELECT {keys}, {_TOTALS.format(t='')} FROM {both}"
        rows = database.table(f"{sql} GROUP BY {keys}", params, **tables)
        changes.append(Change(table, Op.UPSERT, rows))
    return changes


def _ledger_days(database: Database, bound: datetime) -> Change:
    keys = "subscriber_id, day, kind, channel"
    fresh = (
        "SELECT subscriber_id, date_trunc('day', changed_at)::TIMESTAMP AS day, "
        "coalesce(kind, '') AS kind, coalesce(channel, '') AS channel, count(*) AS accepted "
        f"FROM ledger WHERE changed_at < ? AND state = '{State.ACCEPTED.value}' GROUP BY ALL"
    )
    kept = f"SELECT k.* FROM ledger_days k SEMI JOIN fresh USING ({keys})"
    rows = database.table(
        f"WITH fresh AS ({fresh}) SELECT {keys}, sum(accepted)::BIGINT AS accepted "
        f"FROM (FROM fresh UNION ALL BY NAME {kept}) GROUP BY {keys}",
        [bound],
    )
    return Change("ledger_days", Op.UPSERT, rows)


def _ledger_campaigns(database: Database, bound: datetime) -> Change:
    """What a campaign's accounting still counts of the rows that leave."""
    keys = "campaign_id, state, reason"
    fresh = (
        "SELECT campaign_id, state, coalesce(reason, '') AS reason, count(*) AS messages "
        f"FROM ledger WHERE {is_old(LEDGER.name)} AND campaign_id IS NOT NULL GROUP BY ALL"
    )
    kept = f"SELECT k.* FROM ledger_campaigns k SEMI JOIN fresh USING ({keys})"
    rows = database.table(
        f"WITH fresh AS ({fresh}) SELECT {keys}, sum(messages)::BIGINT AS messages "
        f"FROM (FROM fresh UNION ALL BY NAME {kept}) GROUP BY {keys}",
        [bound],
    )
    return Change("ledger_campaigns", Op.UPSERT, rows)


class RetentionHook:
    """Runs ``Retain`` and ``Expire`` once a day and after a recovery."""

    tables: frozenset[str] = frozenset()
    min_gap_s = 0.0

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings

    def after_commit(self, database: Database, context: Context) -> RetentionResult:
        tomorrow = datetime.combine(context.now.date() + timedelta(days=1), time.min)
        # Not all shards at the same minute: their journals may lie on one disk.
        wake = tomorrow + timedelta(seconds=context.shard * 37 % 3_600)
        return RetentionResult((), (Retain(self._settings), Expire(self._settings)), wake)
