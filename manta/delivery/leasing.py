"""Leases: how messages go to a Sender, and how what became of them comes back.

A lease is granted once, under the Sender's own name for it (``lease_id``), in one commit with the
move of its rows to ``leased``. From then on a row moves only by evidence: the word of the Sender
that holds it, or what its fenced journal proves (``manta.delivery.settling``). Time alone moves a
lease no further than to ``orphaned``, which says that somebody has to read that journal.

A crash of the shard between grant and reply leaves rows leased under a known name: the Sender asks
again with the same name and gets what is leased under it. A crash of the Sender leaves its rows
leased or orphaned until its journal is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.delivery.campaign import CampaignPlan
from manta.delivery.frequency import Asked, Frequency, Verdict, frequency
from manta.delivery.ledger import State, move
from manta.delivery.outcomes import expiry_reason
from manta.delivery.returns.classification import Category
from manta.delivery.screening import Screened, Wanted, screen
from manta.delivery.senders import refuse_older, sender_row
from manta.errors import InvalidRequest
from manta.schema import ATTRIBUTE_PREFIX

LEASE_ROWS_MAX = 500
LEASE_CAMPAIGNS_MAX = 8  # one lease looks into so many campaigns of a class at most
FOUND_ROWS = 4_000  # due rows that one look finds, for the leases to come
FOUND_S = 2.0  # how long they may wait there
HINTS_MAX = 100
GREYLISTED_OPEN_AFTER = timedelta(hours=1)  # overdue for so long, any source may try

_KEY = ("subscriber_id", "message_key")
_TIMESTAMP = pa.timestamp("us")


class Grant(NamedTuple):
    """The answer to a lease: one row per message, in the order in which to send.

    Columns: subscriber_id, message_key, campaign_id, kind, email, domain, time_zone, locale,
    attempts (before this one), expires_at, _send_to (the address that gets a test in the person's
    place), and ``attr_*`` as far as templates of the batch use them and the workspace has them.
    ``more``: whether rows that were due stayed behind. ``withheld``: messages of the lease that may
    no longer be sent (only after a repeat): to be returned.
    """

    rows: pa.Table
    more: bool = False
    withheld: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Lease:
    """Take up to ``limit`` due messages for a source and a site.

    ``serves`` lists the names (the source and its pools) under which campaigns may have asked for
    this source. ``domains`` are those of the site; None means every domain (a relay), save
    ``except_domains``. Campaigns in ``without`` are left alone, and with ``only`` all but these;
    ``engaged_only`` takes no message of somebody who never acted on one (a source that is being
    warmed up). What was greylisted goes to the source that was told to come back (RFC 6647 §3.2),
    unless it is overdue by long. The Sender has stored "lease opened" as entry
    ``journal_sequence`` of its journal before it asks.

    Answers a ``Grant``; a repeat answers what is still leased under this name, checked again.
    "Nothing" is stored like any grant (see ``senders.confirmation``).
    Raises ``Fenced`` when a later incarnation of the Sender has spoken to this shard.
    """

    lease_id: int
    sender: str
    sender_epoch: int
    journal_sequence: int
    source: str
    site: str
    domains: tuple[str, ...] | None = None
    limit: int = LEASE_ROWS_MAX
    serves: tuple[str, ...] = ()
    provider: str = ""
    except_domains: tuple[str, ...] = ()
    without: tuple[int, ...] = ()
    engaged_only: bool = False
    only: tuple[int, ...] = ()

    @property
    def key(self) -> str | None:
        return f"lease:{self.lease_id}"

    def decide(self, database: Database, context: Context) -> Decision:
        if not 0 < self.limit <= LEASE_ROWS_MAX:
            raise InvalidRequest("rows per lease", path="limit", expected=f"1 to {LEASE_ROWS_MAX}")
        refuse_older(database, self.sender, self.sender_epoch)
        plans = _running(database, self.serves or (self.source,))
        plans = {
            i: plan
            for i, plan in plans.items()
            if i not in self.without and (not self.only or i in self.only)
        }
        rows, more = self._next_rows(database, context.now, list(plans.values()))
        hours = frequency(database, context.settings.get("time_zone") or "UTC")
        sorted_out = _sort_out(database, context, rows, plans, self.domains, hours)
        changes = sorted_out.changes
        if sorted_out.granted.num_rows:
            changes = (*changes, self._leased(sorted_out.granted, context.now))
        changes = changes or (sender_row(self.sender, self.sender_epoch, context.now),)
        return Decision(Grant(sorted_out.granted, more), changes)

    def repeat(self, database: Database, context: Context) -> Grant:
        """The answer when the key has been committed before."""
        found = database.rows(
            f"{_ROWS} WHERE lease_id = ? AND state = 'leased' AND sender = ? AND sender_epoch = ?"
            " ORDER BY priority, engaged_at DESC NULLS LAST, subscriber_id",
            [self.lease_id, self.sender, self.sender_epoch],
        )
        rows = [_Row(*row) for row in found]
        granted = _sort_out(database, context, rows, _running(database, None), None).granted
        kept = set(_refs(granted))
        refs = [(row.subscriber_id, row.message_key) for row in rows]
        return Grant(granted, False, tuple(ref for ref in refs if ref not in kept))

    def _next_rows(
        self, database: Database, now: datetime, plans: list[CampaignPlan]
    ) -> tuple[list[_Row], bool]:
        """The rows to look at, in the order of sending, and whether there are more."""
        row_ids, more = self._candidates(database, now, plans)
        rows = self._still_due(database, now, row_ids)
        if len(rows) < len(row_ids):
            database.hints.clear()
            row_ids, more = self._candidates(database, now, plans)
            rows = self._still_due(database, now, row_ids)
        return rows, more

    def _still_due(self, database: Database, now: datetime, row_ids: list[int]) -> list[_Row]:
        """Those of the rows that are due here. Found a while ago, a row may have been leased
        (then it has no due time, or a later one) or renamed; nothing else of it changes."""
        found = database.rows(
            f"{_ROWS} WHERE list_contains(?, rowid) AND due_at <= ?", [row_ids, now]
        )
        place = {row[0]: _Row(*row) for row in found}
        rows = [place[row_id] for row_id in row_ids if row_id in place]
        return [
            row
            for row in rows
            if (self.domains is None or row.domain in self.domains)
            and row.domain not in self.except_domains
        ]

    def _candidates(
        self, database: Database, now: datetime, plans: list[CampaignPlan]
    ) -> tuple[list[int], bool]:
        """Row ids by priority class, then round robin by campaign, then the engaged first."""
        chosen: list[tuple[int, deque[int]]] = []
        for priority in sorted({plan.priority for plan in plans}):
            ring = sorted(plan.campaign_id for plan in plans if plan.priority == priority)
            start = self.lease_id % len(ring)
            ring = [*ring[start:], *ring[:start]][:LEASE_CAMPAIGNS_MAX]
            queues = [self._due(database, now, campaign_id) for campaign_id in ring]
            turns = zip_longest(*([(row, queue) for row in self._first(queue)] for queue in queues))
            chosen += [each for turn in turns for each in turn if each is not None]
            if len(chosen) > self.limit:
                break
        taken = chosen[: self.limit]
        for _, queue in taken:  # of each queue those at its beginning
            queue.popleft()
        return [row for row, _ in taken], len(chosen) > self.limit

    def _first(self, queue: deque[int]) -> Iterator[int]:
        return islice(queue, self.limit + 1)

    def _due(self, database: Database, now: datetime, campaign_id: int) -> deque[int]:
        """Due rows of a campaign in their order: if there are more than ``limit``, more than that.

        What one lease has found and not taken is where the next ones look first: rows that become
        due meanwhile wait for ``FOUND_S`` at most.
        """
        lane = (self.domains, self.except_domains, self.engaged_only, self.source)
        found = database.hints.get(("due", campaign_id, lane))
        if found is not None and found.until > now and len(found.rows) > self.limit:
            rows: deque[int] = found.rows
            return rows
        rows = deque(self._find_due(database, now, campaign_id))
        if len(database.hints) >= HINTS_MAX:
            database.hints.clear()
        until = now + timedelta(seconds=FOUND_S)
        database.hints["due", campaign_id, lane] = _Found(until, rows)
        return rows

    def _find_due(self, database: Database, now: datetime, campaign_id: int) -> list[int]:
        due = (
            "FROM ledger WHERE due_at <= ? AND campaign_id = ? AND"
            f" (category IS DISTINCT FROM '{Category.GREYLISTED}' OR source = ? OR due_at <= ?)"
        )
        params: list[Any] = [now, campaign_id, self.source, now - GREYLISTED_OPEN_AFTER]
        if self.domains is not None:
            due += " AND domain IN (SELECT unnest(?))"
            params.append(list(self.domains))
        if self.except_domains:
            due += " AND domain NOT IN (SELECT unnest(?))"
            params.append(list(self.except_domains))
        if self.engaged_only:
            due += " AND engaged_at IS NOT NULL"
        # Mostly the latest month has enough, and a scan that stops early is cheaper than a sort.
        ((latest,),) = database.rows(f"SELECT max(engaged_at) {due}", params)
        of_latest = "engaged_at IS NULL" if latest is None else "engaged_at = ?"
        month = [] if latest is None else [latest]
        rows = database.rows(
            f"SELECT rowid {due} AND {of_latest} LIMIT ?", [*params, *month, FOUND_ROWS]
        )
        if len(rows) <= self.limit and latest is not None:
            rows = database.rows(
                f"SELECT rowid {due} ORDER BY engaged_at DESC NULLS LAST, rowid LIMIT ?",
                [*params, FOUND_ROWS],
            )
        return [row for (row,) in rows]

    def _leased(self, granted: pa.Table, now: datetime) -> Change:
        move(State.PLANNED, State.LEASED)
        count = granted.num_rows
        return Change(
            "ledger",
            Op.UPSERT,
            pa.table(
                {
                    **{name: granted.column(name) for name in _KEY},
                    "domain": granted.column("domain"),
                    "state": pa.repeat(str(State.LEASED), count),
                    "reason": pa.nulls(count, pa.string()),
                    "due_at": pa.nulls(count, _TIMESTAMP),
                    "sender": pa.repeat(self.sender, count),
                    "sender_epoch": pa.repeat(self.sender_epoch, count),
                    "lease_id": pa.repeat(pa.scalar(self.lease_id, pa.int64()), count),
                    "journal_sequence": pa.repeat(self.journal_sequence, count),
                    "source": pa.repeat(self.source, count),
                    "provider": pa.repeat(self.provider or self.site, count),
                    "changed_at": _instants(now, count),
                }
            ),
        )


# -- granting ------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """What granting must know of a row of the ledger."""

    row_id: int
    subscriber_id: int
    message_key: int
    campaign_id: int
    kind: str
    channel: str
    attempts: int
    expires_at: datetime | None
    send_to: str | None
    domain: str | None


_ROWS = f"SELECT rowid AS {', '.join(_Row._fields)} FROM ledger"


class _Found(NamedTuple):
    """Row ids found due by an earlier lease. They are looked at again before they are granted."""

    until: datetime
    rows: deque[int]


class _SortedOut(NamedTuple):
    granted: pa.Table
    changes: tuple[Change, ...]


def _running(database: Database, serves: Iterable[str] | None) -> dict[int, CampaignPlan]:
    """The plans of running campaigns that ask for one of these sources (None: for any)."""
    found = database.rows("SELECT campaign_id, definition FROM campaigns WHERE state = 'running'")
    plans = {campaign_id: CampaignPlan.from_json(text) for campaign_id, text in sorted(found)}
    if serves is None:
        return plans
    names = set(serves)
    return {i: plan for i, plan in plans.items() if plan.source in names}


def _sort_out(
    database: Database,
    context: Context,
    rows: list[_Row],
    plans: dict[int, CampaignPlan],
    domains: tuple[str, ...] | None,
    hours: Frequency | None = None,
) -> _SortedOut:
    """Split rows into those that may be sent now, and the changes for the others."""
    topics = {i: plan.topic for i, plan in plans.items()}
    wanted = [
        Wanted(
            row.subscriber_id, row.kind, row.channel, topics.get(row.campaign_id, ""), row.send_to
        )
        for row in rows
    ]
    columns = _attribute_columns(database, {row.campaign_id for row in rows}, plans)
    screened, now = screen(database, wanted, context, columns), context.now
    kept: list[int] = []
    moved: list[tuple[_Row, str]] = []
    refused: list[tuple[_Row, State, str]] = []
    for place, (row, refusal, domain) in enumerate(
        zip(rows, screened.refusals, screened.domains, strict=True)
    ):
        if row.expires_at is not None and row.expires_at <= now:
            refused.append((row, State.EXPIRED, expiry_reason(row.attempts)))
        elif refusal is not None:
            refused.append((row, State.SUPPRESSED, refusal))
        elif domains is not None and domain != row.domain and domain not in domains:
            assert domain is not None, "no refusal, and no address"
            moved.append((row, domain))
        elif row.campaign_id in plans:
            kept.append(place)
    held: list[tuple[_Row, Verdict]] = []
    if hours is not None and kept:
        kept, held = _by_frequency(database, now, rows, screened, plans, kept, hours)
    changes = [_refusals(refused, now)] if refused else []
    if held:
        changes.append(_held_back(held, now))
    if moved:
        changes.append(_renamed_domains(moved))
    return _SortedOut(_granted(rows, screened, columns, kept), tuple(changes))


def _by_frequency(
    database: Database,
    now: datetime,
    rows: list[_Row],
    screened: Screened,
    plans: dict[int, CampaignPlan],
    kept: list[int],
    hours: Frequency,
) -> tuple[list[int], list[tuple[_Row, Verdict]]]:
    """Of the places of rows that may be sent, those that caps and quiet hours let through."""
    zones = screened.profiles["time_zone"]
    asked = [
        Asked(rows[place].subscriber_id, rows[place].channel, rows[place].campaign_id, zones[place])
        for place in kept
    ]
    verdicts = hours.verdicts(database, asked, plans, now)
    passed = [place for place, verdict in zip(kept, verdicts, strict=True) if verdict is None]
    held = [
        (rows[place], verdict)
        for place, verdict in zip(kept, verdicts, strict=True)
        if verdict is not None
    ]
    return passed, held


def _held_back(held: list[tuple[_Row, Verdict]], now: datetime) -> Change:
    """Rows that wait for another time stay planned; the others are suppressed."""
    states = [
        State.PLANNED if verdict.until else move(State.PLANNED, State.SUPPRESSED)
        for _, verdict in held
    ]
    table = pa.table(
        {
            "subscriber_id": pa.array([row.subscriber_id for row, _ in held], pa.int64()),
            "message_key": pa.array([row.message_key for row, _ in held], pa.int64()),
            "state": pa.array([str(state) for state in states]),
            "reason": pa.array([verdict.reason for _, verdict in held], pa.string()),
            "category": pa.array([verdict.category for _, verdict in held], pa.string()),
            "due_at": pa.array([verdict.until for _, verdict in held], _TIMESTAMP),
            "changed_at": _instants(now, len(held)),
        }
    )
    return Change("ledger", Op.UPSERT, table)


def _granted(
    rows: list[_Row], screened: Screened, columns: Sequence[str], kept: list[int]
) -> pa.Table:
    """The answer's table: of the rows in these places, with the people's own columns."""
    granted = [rows[place] for place in kept]
    table = {
        "subscriber_id": pa.array([row.subscriber_id for row in granted], pa.int64()),
        "message_key": pa.array([row.message_key for row in granted], pa.int64()),
        "campaign_id": pa.array([row.campaign_id for row in granted], pa.int32()),
        "kind": pa.array([row.kind for row in granted], pa.string()),
        "attempts": pa.array([row.attempts for row in granted], pa.uint16()),
        "expires_at": pa.array([row.expires_at for row in granted], _TIMESTAMP),
        "_send_to": pa.array([row.send_to for row in granted], pa.string()),
        "domain": pa.array([screened.domains[place] for place in kept], pa.string()),
    }
    for name in ("email", "time_zone", "locale"):
        values = screened.profiles[name]
        table[name] = pa.array([values[place] for place in kept], pa.string())
    for name in columns:
        values = screened.profiles[name]
        table[name] = pa.array([values[place] for place in kept])
    return pa.table(table)


def _refusals(refused: list[tuple[_Row, State, str]], now: datetime) -> Change:
    table = pa.table(
        {
            "subscriber_id": pa.array([row.subscriber_id for row, *_ in refused], pa.int64()),
            "message_key": pa.array([row.message_key for row, *_ in refused], pa.int64()),
            "state": pa.array([str(move(State.PLANNED, state)) for _, state, _ in refused]),
            "reason": pa.array([reason for *_, reason in refused], pa.string()),
            "due_at": pa.nulls(len(refused), _TIMESTAMP),
            "changed_at": _instants(now, len(refused)),
        }
    )
    return Change("ledger", Op.UPSERT, table)


def _renamed_domains(moved: list[tuple[_Row, str]]) -> Change:
    """Rows whose address has gone to another site stay planned, for the Sender of that site."""
    table = pa.table(
        {
            "subscriber_id": pa.array([row.subscriber_id for row, _ in moved], pa.int64()),
            "message_key": pa.array([row.message_key for row, _ in moved], pa.int64()),
            "domain": pa.array([domain for _, domain in moved], pa.string()),
        }
    )
    return Change("ledger", Op.UPSERT, table)


def _attribute_columns(
    database: Database, campaigns: set[int], plans: dict[int, CampaignPlan]
) -> list[str]:
    wanted = {name for i in campaigns if i in plans for name in plans[i].attributes}
    if not wanted:
        return []
    return sorted(
        {ATTRIBUTE_PREFIX + name for name in wanted} & database.columns("profiles").keys()
    )


def _refs(rows: pa.Table) -> list[tuple[int, int]]:
    columns = [rows.column(name).to_pylist() for name in _KEY]
    return list(zip(*columns, strict=True))


def _instants(now: datetime, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(now, _TIMESTAMP), count)
