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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op, Push
from manta.delivery.campaign import CampaignPlan
from manta.delivery.ledger import State, move
from manta.delivery.outcomes import GREYLISTED, expiry_reason
from manta.delivery.screening import Wanted, screen
from manta.delivery.senders import refuse_older, sender_row
from manta.errors import InvalidRequest
from manta.schema import ATTRIBUTE_PREFIX

LEASE_ROWS_MAX = 200
LEASE_CAMPAIGNS_MAX = 8  # one lease looks into so many campaigns of a class at most
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
        row_ids, more = self._candidates(database, context.now, list(plans.values()))
        rows = database.table(f"{_ROWS} WHERE rowid IN (SELECT unnest(?))", [row_ids])
        rows = _in_order_of(rows, row_ids)
        sorted_out = _sort_out(database, context.now, rows, plans, self.domains)
        changes = sorted_out.changes
        if sorted_out.granted.num_rows:
            changes = (*changes, self._leased(sorted_out.granted, context.now))
        changes = changes or (sender_row(self.sender, self.sender_epoch, context.now),)
        return Decision(Grant(sorted_out.granted, more), changes)

    def repeat(self, database: Database, context: Context) -> Grant:
        """The answer when the key has been committed before."""
        rows = database.table(
            f"{_ROWS} WHERE lease_id = ? AND state = 'leased' AND sender = ? AND sender_epoch = ?"
            " ORDER BY priority, engaged_at DESC NULLS LAST, subscriber_id",
            [self.lease_id, self.sender, self.sender_epoch],
        )
        granted = _sort_out(database, context.now, rows, _running(database, None), None).granted
        kept = set(_refs(granted))
        return Grant(granted, False, tuple(ref for ref in _refs(rows) if ref not in kept))

    def _candidates(
        self, database: Database, now: datetime, plans: list[CampaignPlan]
    ) -> tuple[list[int], bool]:
        """Row ids by priority class, then round robin by campaign, then the engaged first."""
        chosen: list[int] = []
        for priority in sorted({plan.priority for plan in plans}):
            ring = sorted(plan.campaign_id for plan in plans if plan.priority == priority)
            start = self.lease_id % len(ring)
            ring = [*ring[start:], *ring[:start]][:LEASE_CAMPAIGNS_MAX]
            queues = [self._due(database, now, campaign_id) for campaign_id in ring]
            turns = zip_longest(*queues)
            chosen += [row for turn in turns for row in turn if row is not None]
            if len(chosen) > self.limit:
                break
        return chosen[: self.limit], len(chosen) > self.limit

    def _due(self, database: Database, now: datetime, campaign_id: int) -> list[int]:
        due = (
            "FROM ledger WHERE due_at <= ? AND campaign_id = ?"
            f" AND (category IS DISTINCT FROM '{GREYLISTED}' OR source = ? OR due_at <= ?)"
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
        count = self.limit + 1
        # Mostly the latest month has enough, and a scan that stops early is cheaper than a sort.
        ((latest,),) = database.rows(f"SELECT max(engaged_at) {due}", params)
        of_latest = "engaged_at IS NULL" if latest is None else "engaged_at = ?"
        month = [] if latest is None else [latest]
        rows = database.rows(
            f"SELECT rowid {due} AND {of_latest} LIMIT ?", [*params, *month, count]
        )
        if len(rows) < count and latest is not None:
            rows = database.rows(
                f"SELECT rowid {due} ORDER BY engaged_at DESC NULLS LAST, rowid LIMIT ?",
                [*params, count],
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


def revoke_people(database: Database, subscriber_ids: Sequence[int]) -> tuple[Push, ...]:
    """Pushes that withdraw messages of these people from the Senders that hold them.

    For every command after which somebody may no longer be mailed.
    """
    held = database.rows(
        "SELECT sender, subscriber_id, message_key FROM ledger"
        " WHERE subscriber_id IN (SELECT unnest(?)) AND lease_id IS NOT NULL AND state = 'leased'"
        " ORDER BY 1, 2, 3",
        [list(subscriber_ids)],
    )
    by_sender: dict[str, list[tuple[int, int]]] = {}
    for sender, subscriber_id, message_key in held:
        by_sender.setdefault(sender, []).append((subscriber_id, message_key))
    return tuple(
        Push(sender, "revoke", (None, tuple(refs))) for sender, refs in sorted(by_sender.items())
    )


# -- granting ------------------------------------------------------------------------------------

_ROWS = (
    "SELECT rowid AS row_id, subscriber_id, message_key, campaign_id, kind, channel, attempts,"
    " expires_at, send_to AS _send_to, domain AS old_domain FROM ledger"
)


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
    now: datetime,
    rows: pa.Table,
    plans: dict[int, CampaignPlan],
    domains: tuple[str, ...] | None,
) -> _SortedOut:
    """Split rows into those that may be sent now, and the changes for the others."""
    count = rows.num_rows
    if not count:
        return _SortedOut(_empty_grant(rows), ())
    campaigns = rows.column("campaign_id").to_pylist()
    wanted = [
        Wanted(
            person, kind, channel, plans[campaign_id].topic if campaign_id in plans else "", send_to
        )
        for person, kind, channel, send_to, campaign_id in zip(
            *(rows.column(n).to_pylist() for n in ("subscriber_id", "kind", "channel", "_send_to")),
            campaigns,
            strict=True,
        )
    ]
    columns = _attribute_columns(database, set(campaigns), plans)
    screened = screen(database, wanted, now, columns)
    expiries = rows.column("expires_at").to_pylist()
    attempts = rows.column("attempts").to_pylist()
    verdicts = [
        _verdict(expires_at, tried, refusal, now)
        for expires_at, tried, refusal in zip(expiries, attempts, screened.refusals, strict=True)
    ]
    old_domains = rows.column("old_domain").to_pylist()
    moved = [
        domains is not None and verdict is None and new != old and new not in domains
        for verdict, new, old in zip(verdicts, screened.domains, old_domains, strict=True)
    ]
    keep = [
        verdict is None and not gone and campaign_id in plans
        for verdict, gone, campaign_id in zip(verdicts, moved, campaigns, strict=True)
    ]
    everything = rows.drop_columns(["row_id", "channel", "old_domain"])
    everything = everything.append_column("domain", pa.array(screened.domains, pa.string()))
    for name in ("email", "time_zone", "locale", *columns):
        everything = everything.append_column(name, screened.profiles.column(name))
    changes = _refusals(rows, verdicts, now)
    if any(moved):
        changes.append(_renamed_domains(everything.filter(pa.array(moved))))
    return _SortedOut(everything.filter(pa.array(keep)), tuple(changes))


def _verdict(
    expires_at: datetime | None, attempts: int, refusal: str | None, now: datetime
) -> tuple[State, str] | None:
    """Where a row goes that may not be sent: (state, reason); None where it may."""
    if expires_at is not None and expires_at <= now:
        return State.EXPIRED, expiry_reason(attempts)
    if refusal is not None:
        return State.SUPPRESSED, refusal
    return None


def _refusals(
    rows: pa.Table, verdicts: list[tuple[State, str] | None], now: datetime
) -> list[Change]:
    places = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    if not places:
        return []
    targets = [verdict for verdict in verdicts if verdict is not None]
    taken = rows.take(pa.array(places))
    table = pa.table(
        {
            **{name: taken.column(name) for name in _KEY},
            "state": pa.array([str(move(State.PLANNED, target)) for target, _ in targets]),
            "reason": pa.array([reason for _, reason in targets], pa.string()),
            "due_at": pa.nulls(len(places), _TIMESTAMP),
            "changed_at": _instants(now, len(places)),
        }
    )
    return [Change("ledger", Op.UPSERT, table)]


def _renamed_domains(rows: pa.Table) -> Change:
    """Rows whose address has gone to another site stay planned, for the Sender of that site."""
    return Change("ledger", Op.UPSERT, rows.select([*_KEY, "domain"]))


def _attribute_columns(
    database: Database, campaigns: set[int], plans: dict[int, CampaignPlan]
) -> list[str]:
    wanted = {name for i in campaigns if i in plans for name in plans[i].attributes}
    if not wanted:
        return []
    present = set(database.table("SELECT * FROM profiles LIMIT 0").column_names)
    return sorted({ATTRIBUTE_PREFIX + name for name in wanted} & present)


def _empty_grant(rows: pa.Table) -> pa.Table:
    empty = rows.drop_columns(["row_id", "channel", "old_domain"])
    for name in ("domain", "email", "time_zone", "locale"):
        empty = empty.append_column(name, pa.array([], pa.string()))
    return empty


def _refs(rows: pa.Table) -> list[tuple[int, int]]:
    columns = [rows.column(name).to_pylist() for name in _KEY]
    return list(zip(*columns, strict=True))


def _in_order_of(rows: pa.Table, row_ids: list[int]) -> pa.Table:
    """A query for a set of row ids answers in any order; the order of sending is ours."""
    if not rows.num_rows:
        return rows
    place = {row_id: i for i, row_id in enumerate(rows.column("row_id").to_pylist())}
    return rows.take(pa.array([place[row_id] for row_id in row_ids]))


def _instants(now: datetime, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(now, _TIMESTAMP), count)
