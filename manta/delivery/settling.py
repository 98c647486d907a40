"""Settling: evidence moves leased messages on.

Evidence is believed for the row's present lease only. What comes late, twice or from a foreign
lease changes nothing, with one exception: an ``uncertain`` row takes a late ``accepted`` or
``failed`` from the lease that left it so.

Time alone moves a lease no further than to ``orphaned`` (``Orphan``), which says that somebody has
to read the Sender's journal. That reader fences the journal, tells the shard (``FenceSender``: no
lease of the old incarnation can be granted behind its back), reads, and says what the journal
proves (``ResolveOrphans``). A crash anywhere in between leaves the rows orphaned for the next try.

A refusal that says something about its address suppresses it in the same commit
(``manta.delivery.returns.failures``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind
from manta.delivery.ledger import Policy, State, age_limit, move
from manta.delivery.outcomes import (
    OUTCOME_SCHEMA,
    REASON_CHARACTERS_MAX,
    REPLY_CHARACTERS_MAX,
    Outcome,
    OutcomeKind,
    expiry_reason,
    outcomes_of,
)
from manta.delivery.returns.failures import Refusal, suppress_refused
from manta.delivery.senders import confirmation, refuse_older, sender_row, told_of
from manta.errors import InvalidRequest
from manta.ids import hash64

RESEND_AFTER = timedelta(minutes=5)
RESEND_ATTEMPTS_MAX = 5  # then it stays uncertain under `resend` too

_KEY = ("subscriber_id", "message_key")
_TIMESTAMP = pa.timestamp("us")
_REFUSED = (State.FAILED, State.EXPIRED)


@dataclass(frozen=True)
class Settle:
    """A Sender's outcomes for messages of one lease (schema ``outcomes.OUTCOME_SCHEMA``).

    Answers ``{"settled", "ignored"}``. Harmless to repeat, late, or from a fenced incarnation: it
    is the word of the one who held the lease. ``journal_sequence`` is its journal's last entry.
    """

    lease_id: int
    sender: str
    sender_epoch: int
    outcomes: pa.Table
    journal_sequence: int = 0
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        rows = database.rows(
            f"SELECT {', '.join(_Row._fields)} FROM ledger"
            " WHERE lease_id = ? AND sender = ? AND sender_epoch = ?",
            [self.lease_id, self.sender, self.sender_epoch],
        )
        outcomes = checked_outcomes(self.outcomes)
        decision = _settle(database, context, rows, outcomes, self.journal_sequence)
        return _confirmed(database, context, decision, self.sender, self.sender_epoch)


@dataclass(frozen=True)
class Orphan:
    """Leases past their deadline become orphans. Answers how many messages.

    Only the shard's own hook sends it: it keeps the deadlines, as durations, in memory.
    """

    lease_ids: tuple[int, ...]
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        rows = database.table(
            "SELECT subscriber_id, message_key FROM ledger"
            " WHERE lease_id IN (SELECT unnest(?)) AND state = 'leased'",
            [list(self.lease_ids)],
        )
        if not rows.num_rows:
            return Decision(0)
        return Decision(rows.num_rows, (_orphaned(rows, context.now),))


class Unresolved(NamedTuple):
    """``rows``: subscriber_id, message_key, lease_id of every message that earlier incarnations
    hold. ``journal_sequence``: an entry of the journal that the shard knows to have existed."""

    rows: pa.Table
    journal_sequence: int


@dataclass(frozen=True)
class FenceSender:
    """From now on only incarnations of ``epoch`` or later lease; what earlier ones hold becomes
    orphaned. Sent after the journal was fenced under ``epoch``. Answers ``Unresolved``."""

    sender: str
    epoch: int
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        refuse_older(database, self.sender, self.epoch)
        rows = database.table(
            "SELECT subscriber_id, message_key, lease_id, state FROM ledger"
            " WHERE lease_id IS NOT NULL AND sender = ? AND sender_epoch < ?"
            " AND state IN ('leased', 'orphaned') ORDER BY lease_id, subscriber_id, message_key",
            [self.sender, self.epoch],
        )
        changes = [sender_row(self.sender, self.epoch, context.now)]
        leased = rows.filter(pc.equal(rows.column("state"), str(State.LEASED)))
        if leased.num_rows:
            changes.append(_orphaned(leased, context.now))
        unresolved = Unresolved(rows.drop_columns("state"), told_of(database, self.sender))
        return Decision(unresolved, tuple(changes))


@dataclass(frozen=True)
class ResolveOrphans:
    """What the fenced journal of earlier incarnations proves of their messages.

    ``verdicts`` are outcomes with the ``lease_id`` that each is about: ``returned`` where the
    journal proves that there was no attempt, the outcome where it has one, else ``uncertain``.
    Answers ``{"settled", "ignored"}``.
    """

    sender: str
    sender_epoch: int  # of the fence
    verdicts: pa.Table
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        refuse_older(database, self.sender, self.sender_epoch)
        outcomes = checked_outcomes(self.verdicts.drop_columns("lease_id"))
        leases = self.verdicts.column("lease_id").to_pylist()
        rows = database.rows(
            f"SELECT {', '.join(_Row._fields)} FROM ledger"
            " WHERE lease_id IN (SELECT unnest(?)) AND sender = ? AND sender_epoch < ?",
            [sorted(set(leases)), self.sender, self.sender_epoch],
        )
        lease_of = {
            (o.subscriber_id, o.message_key): i for o, i in zip(outcomes, leases, strict=True)
        }
        mine = [row for row in rows if lease_of.get((row[0], row[1])) == _Row(*row).lease_id]
        decision = _settle(database, context, mine, outcomes)
        return _confirmed(database, context, decision, self.sender, self.sender_epoch)


def checked_outcomes(table: pa.Table) -> list[Outcome]:
    """The outcomes of a table that came from outside; each message once."""
    missing = set(OUTCOME_SCHEMA.names) - set(table.column_names)
    if missing:
        raise InvalidRequest(f"outcomes lack {', '.join(sorted(missing))}", path="outcomes")
    try:
        outcomes = outcomes_of(table.select(OUTCOME_SCHEMA.names))
    except ValueError as error:
        raise InvalidRequest(
            str(error)[:200], path="outcomes.outcome", expected=", ".join(OutcomeKind)
        ) from error
    if len({(o.subscriber_id, o.message_key) for o in outcomes}) != len(outcomes):
        raise InvalidRequest("a message has two outcomes", path="outcomes")
    return outcomes


# -- settling ------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """What settling must know of a row."""

    subscriber_id: int
    message_key: int
    campaign_id: int
    kind: str
    state: str
    attempts: int
    expires_at: datetime | None
    lease_id: int


class _Landing(NamedTuple):
    """Where an outcome takes a row."""

    row: _Row
    outcome: Outcome
    state: State
    reason: str
    due_at: datetime | None
    attempts: int
    expires_at: datetime | None = None  # where it has changed

    @property
    def refusal(self) -> Refusal:
        said, ref = self.outcome, (self.row.subscriber_id, self.row.message_key)
        return Refusal(*ref, said.bounce_class, said.reply, self.state is State.EXPIRED)


class _Campaign(NamedTuple):
    state: str
    policy: Policy


def _settle(
    database: Database,
    context: Context,
    rows: Iterable[tuple[Any, ...]],
    outcomes: list[Outcome],
    journal_sequence: int = 0,
) -> Decision:
    by_ref = {(row[0], row[1]): _Row(*row) for row in rows}
    campaigns = _campaigns(database, {row.campaign_id for row in by_ref.values()})
    landings, age = [], age_limit(context.settings)
    for outcome in outcomes:
        row = by_ref.get((outcome.subscriber_id, outcome.message_key))
        landing = row and land(row, outcome, campaigns[row.campaign_id], context.now, age)
        if landing:
            landings.append(landing)
    answer = {"settled": len(landings), "ignored": len(outcomes) - len(landings)}
    if not landings:
        return Decision(answer)
    replied = [x for x in landings if x.outcome.reply or x.outcome.reply_code]
    silent = [x for x in landings if not (x.outcome.reply or x.outcome.reply_code)]
    changes = [_landed(some, context.now, journal_sequence) for some in (replied, silent) if some]
    # A test is no part of what its person has got.
    accepted = [x for x in landings if x.state is State.ACCEPTED and x.row.kind != Kind.TEST]
    if accepted:
        changes.append(_sent_events(accepted))
    if len(accepted) == len(landings):
        return Decision(answer, tuple(changes))
    refusals = [x.refusal for x in landings if x.outcome.bounce_class and x.state in _REFUSED]
    done = suppress_refused(database, context, refusals)
    return Decision(answer, (*changes, *done.changes), done.pushes)


def _confirmed(
    database: Database, context: Context, decision: Decision, sender: str, epoch: int
) -> Decision:
    if decision.changes:
        return decision
    change = confirmation(database, sender, epoch, context.now)
    return Decision(decision.answer, (change,), decision.pushes)


def land(
    row: _Row, outcome: Outcome, campaign: _Campaign, now: datetime, age: timedelta
) -> _Landing | None:
    """Where an outcome takes a row; None where it is no news. Every step is one of the table's."""
    state, kind = State(row.state), outcome.outcome
    if state is State.UNCERTAIN:
        if kind not in (OutcomeKind.ACCEPTED, OutcomeKind.FAILED):
            return None
        new = move(state, State(kind.value))
        return _Landing(row, outcome, new, outcome.reason, None, row.attempts)
    if state not in (State.LEASED, State.ORPHANED):
        return None
    # What expires with a reply was refused for the last time; without one it was never sent.
    was_tried = kind is not OutcomeKind.RETURNED and (
        kind is not OutcomeKind.EXPIRED or outcome.reply_code > 0
    )
    attempts = row.attempts + was_tried
    if kind in (OutcomeKind.RETURNED, OutcomeKind.DEFERRED):
        due_at = max(outcome.due_at or now, now)
        if kind is OutcomeKind.DEFERRED and row.attempts == 0:
            row = row._replace(expires_at=min(row.expires_at or now + age, now + age))
        return _replan(row, outcome, move(state, State.PLANNED), campaign, due_at, attempts, now)
    new = move(state, State(kind.value))
    resend = campaign.policy is Policy.RESEND and attempts < RESEND_ATTEMPTS_MAX
    if new is State.UNCERTAIN and resend:
        new = move(new, State.PLANNED, campaign.policy)
        return _replan(row, outcome, new, campaign, now + RESEND_AFTER, attempts, now)
    return _Landing(row, outcome, new, outcome.reason, None, attempts)


def _replan(
    row: _Row,
    outcome: Outcome,
    state: State,
    campaign: _Campaign,
    due_at: datetime,
    attempts: int,
    now: datetime,
) -> _Landing:
    """A planned row again, unless its campaign or its time is over meanwhile."""
    if campaign.state == CampaignState.CANCELLED:
        cancelled = move(state, State.CANCELLED)
        return _Landing(row, outcome, cancelled, "campaign cancelled", None, attempts)
    if row.expires_at is not None and row.expires_at <= max(due_at, now):
        reason = expiry_reason(attempts, outcome.reason)
        return _Landing(row, outcome, move(state, State.EXPIRED), reason, None, attempts)
    return _Landing(row, outcome, state, outcome.reason, due_at, attempts, row.expires_at)


def _campaigns(database: Database, campaign_ids: set[int]) -> dict[int, _Campaign]:
    found = database.rows(
        "SELECT campaign_id, state, definition FROM campaigns"
        " WHERE campaign_id IN (SELECT unnest(?))",
        [sorted(campaign_ids)],
    )
    known = {i: _Campaign(state, CampaignPlan.from_json(text).policy) for i, state, text in found}
    # Rows outlive no campaign, but a row must never be stuck for want of one.
    missing = _Campaign(CampaignState.FINISHED, Policy.HOLD)
    return {i: known.get(i, missing) for i in campaign_ids}


def _landed(landings: list[_Landing], now: datetime, journal_sequence: int) -> Change:
    """The rows' new values. Where none of them has a reply, the last one stays on record."""
    outcomes = [landing.outcome for landing in landings]
    columns = {
        "subscriber_id": pa.array([o.subscriber_id for o in outcomes], pa.int64()),
        "message_key": pa.array([o.message_key for o in outcomes], pa.int64()),
        "state": pa.array([str(landing.state) for landing in landings]),
        "reason": _texts((x.reason for x in landings), REASON_CHARACTERS_MAX),
        "due_at": pa.array([landing.due_at for landing in landings], _TIMESTAMP),
        "attempts": pa.array([landing.attempts for landing in landings], pa.uint16()),
        "changed_at": _instants(now, len(landings)),
    }
    if any(landing.expires_at for landing in landings):
        columns["expires_at"] = pa.array(
            [landing.expires_at or landing.row.expires_at for landing in landings], _TIMESTAMP
        )
    if journal_sequence:
        columns["journal_sequence"] = pa.repeat(journal_sequence, len(landings))
    if any(o.reply or o.reply_code for o in outcomes):
        columns["reply_code"] = pa.array([o.reply_code or None for o in outcomes], pa.uint16())
        columns["reply"] = _texts((o.reply for o in outcomes), REPLY_CHARACTERS_MAX)
        columns["bounce_class"] = _texts((o.bounce_class for o in outcomes), REASON_CHARACTERS_MAX)
        columns["category"] = _texts((o.category for o in outcomes), REASON_CHARACTERS_MAX)
    return Change("ledger", Op.UPSERT, pa.table(columns))


def _sent_events(accepted: list[_Landing]) -> Change:
    """What segments read: one `sent` per accepted message, its kind as the item."""
    rows = [landing.row for landing in accepted]
    return Change(
        "events",
        Op.INSERT,
        pa.table(
            {
                "subscriber_id": pa.array([row.subscriber_id for row in rows], pa.int64()),
                "occurred_at": pa.array([x.outcome.occurred_at for x in accepted], _TIMESTAMP),
                "type": pa.repeat("sent", len(rows)),
                "event_id": pa.array(
                    [hash64("sent", row.subscriber_id, row.message_key) for row in rows], pa.int64()
                ),
                "campaign_id": pa.array([row.campaign_id for row in rows], pa.int32()),
                "message_key": pa.array([row.message_key for row in rows], pa.int64()),
                "item": pa.array([row.kind for row in rows]),
            }
        ),
    )


def _orphaned(rows: pa.Table, now: datetime) -> Change:
    move(State.LEASED, State.ORPHANED)
    count = rows.num_rows
    table = {
        **{name: rows.column(name) for name in _KEY},
        "state": pa.repeat(str(State.ORPHANED), count),
        "changed_at": _instants(now, count),
    }
    return Change("ledger", Op.UPSERT, pa.table(table))


def _instants(now: datetime, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(now, _TIMESTAMP), count)


def _texts(texts: Iterable[str], characters_max: int) -> pa.Array:
    return pa.array([text[:characters_max] or None for text in texts], pa.string())
