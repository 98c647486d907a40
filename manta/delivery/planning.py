"""Planning: a campaign's audience becomes rows of the ledger.

The Director tells a shard the campaign (``SetCampaign``) and then asks for page after page
(``PlanCampaign``) until the answer says done. Rows are named by person and campaign, so a page
that is asked for again after a crash adds nothing. Who must not be mailed gets a row too,
``suppressed`` with the reason: the accounting has nobody missing. Every commit that adds rows adds
their number to the campaign's ``planned_rows``, a count of its own that the states must come to.

Cancelling changes the campaign's state, so from that commit on nothing of it is leased; its planned
rows become ``cancelled`` in the same commit up to ``SWEEP_ROWS_MAX`` and by ``SweepCampaign`` after
it, so that one cancelled campaign of millions does not stop the shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Context, Database, Decision, Op, Push
from manta.delivery.campaign import CampaignPlan, CampaignState, Kind, move_campaign
from manta.delivery.ledger import State, move
from manta.delivery.outcomes import REASON_CHARACTERS_MAX, expiry_reason
from manta.delivery.screening import Wanted, screen
from manta.errors import Conflict, InvalidRequest, NotFound
from manta.ids import campaign_message_key, hash64
from manta.rules.loading import columns_of_profiles, has_past
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.schema import LEDGER

PLAN_ROWS_MAX = 100_000
SWEEP_ROWS_MAX = 20_000
SHARD_STATES = (
    CampaignState.RUNNING,
    CampaignState.PAUSED,
    CampaignState.CANCELLED,
    CampaignState.FINISHED,
)


@dataclass(frozen=True)
class SetCampaign:
    """A campaign's state for this shard; its plan comes with the first one and never changes.

    ``step`` counts the campaign's changes of state: an earlier one that comes late is no news.
    Answers ``{"state", "cancelled"}``: how many planned rows this commit has cancelled.
    """

    key: str | None
    campaign_id: int
    state: CampaignState
    definition: str = ""
    step: int = 0

    def decide(self, database: Database, context: Context) -> Decision:
        if self.state not in SHARD_STATES:
            raise InvalidRequest(
                f"a shard has no campaign that is {self.state}",
                path="state",
                expected=", ".join(SHARD_STATES),
            )
        known = find_campaign(database, self.campaign_id)
        if known is None:
            plan = _checked_plan(self.definition, self.campaign_id)
            definition, planning = self.definition, "planning" if plan.audience else "planned"
        else:
            planning, definition = known.planning, known.definition
            if self.step < known.step:
                return Decision({"state": known.state, "cancelled": 0})
            move_campaign(CampaignState(known.state), CampaignState(self.state))
            if self.definition and self.definition != definition:
                raise Conflict(
                    f"the plan of campaign {self.campaign_id} is pinned",
                    path="definition",
                    expected="the plan as it was first given",
                )
        row = pa.table(
            {
                "campaign_id": [self.campaign_id],
                "state": [str(self.state)],
                "planning": [planning],
                "definition": [definition],
                "step": pa.array([self.step], pa.int32()),
            }
        )
        changes = [Change("campaigns", Op.UPSERT, row)]
        cancelled = 0
        if self.state == CampaignState.CANCELLED:
            swept = sweep(database, context.now, self.campaign_id, SWEEP_ROWS_MAX)
            cancelled = swept.rows.num_rows if swept else 0
            changes += [swept] if swept else []
        pushes: tuple[Push, ...] = ()
        if self.state in (CampaignState.CANCELLED, CampaignState.PAUSED):
            pushes = _revocations(database, self.campaign_id)
        answer = {"state": str(self.state), "cancelled": cancelled}
        return Decision(answer, tuple(changes), pushes)


@dataclass(frozen=True)
class SweepCampaign:
    """Cancel the next planned rows of a cancelled campaign. Answers how many."""

    campaign_id: int
    limit: int = SWEEP_ROWS_MAX
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        known = find_campaign(database, self.campaign_id)
        if known is None or known.state != CampaignState.CANCELLED:
            return Decision(0)
        swept = sweep(database, context.now, self.campaign_id, self.limit)
        return Decision(swept.rows.num_rows, (swept,)) if swept else Decision(0)


@dataclass(frozen=True)
class ExpireRows:
    """Expire planned rows whose time has passed. Answers how many."""

    limit: int = SWEEP_ROWS_MAX
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        rows = database.table(
            "SELECT subscriber_id, message_key, attempts, reason FROM ledger"
            " WHERE due_at IS NOT NULL AND expires_at <= ? LIMIT ?",
            [context.now, self.limit],
        )
        if not rows.num_rows:
            return Decision(0)
        columns = (rows.column(name).to_pylist() for name in ("attempts", "reason"))
        texts = [
            expiry_reason(*each)[:REASON_CHARACTERS_MAX] for each in zip(*columns, strict=True)
        ]
        change = leave_planned(rows, State.EXPIRED, pa.array(texts, pa.string()), context.now)
        return Decision(rows.num_rows, (change,))


@dataclass(frozen=True)
class PlanCampaign:
    """Write the rows of the audience's next people, in the order of their ids.

    Answers ``{"planned", "suppressed", "done", "last_subscriber"}``. The ledger's own key makes it
    idempotent: a repeat answers for the same people again.
    """

    campaign_id: int
    after_subscriber: int = -1
    limit: int = 20_000
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        if not 0 < self.limit <= PLAN_ROWS_MAX:
            raise InvalidRequest("rows per page", path="limit", expected=f"1 to {PLAN_ROWS_MAX}")
        known = find_campaign(database, self.campaign_id)
        if known is None:
            raise NotFound(f"no campaign {self.campaign_id} in this shard", path="campaign_id")
        if known.state in (CampaignState.CANCELLED, CampaignState.FINISHED):
            nobody = {"planned": 0, "suppressed": 0, "done": True}
            return Decision(nobody | {"last_subscriber": self.after_subscriber})
        plan = CampaignPlan.from_json(known.definition)
        page = self._page(database, plan)
        done = page.num_rows < self.limit
        last = page.column("subscriber_id")[-1].as_py() if page.num_rows else self.after_subscriber
        is_new = pc.is_null(page.column("state"))
        states = page.filter(pc.invert(is_new)).column("state").to_pylist()
        changes: list[Change] = []
        marks: dict[str, Any] = {}
        new = page.filter(is_new)
        if new.num_rows:
            rows = plan_rows(database, context, plan, plan.message_key, new)
            changes.append(Change("ledger", Op.UPSERT, rows))
            states += rows.column("state").to_pylist()
            marks["planned_rows"] = known.planned_rows + new.num_rows
        if done and known.planning != "planned":
            marks["planning"] = "planned"
        if marks:
            changes.append(_campaign_row(self.campaign_id, **marks))
        suppressed = states.count(str(State.SUPPRESSED))
        answer = {"planned": len(states) - suppressed, "suppressed": suppressed, "done": done}
        return Decision(answer | {"last_subscriber": last}, tuple(changes))

    def repeat(self, database: Database, context: Context) -> Any:
        """The answer when the key has been committed before."""
        return self.decide(database, context).answer

    def _page(self, database: Database, plan: CampaignPlan) -> pa.Table:
        """The next people, with the state of the row that they may have already."""
        if not plan.audience:
            return database.table("SELECT 0::BIGINT AS subscriber_id, '' AS state LIMIT 0")
        rule = without_unknown(plan.audience_rule(), columns_of_profiles(database))
        audience = compile_sql(rule, plan.due_at, plan.time_zone, has_past=has_past(database))
        return database.table(
            f"WITH audience AS ({audience.sql}),"
            " page AS (SELECT DISTINCT p.subscriber_id FROM profiles p"
            " WHERE p.subscriber_id > ? AND p.subscriber_id IN (SELECT subscriber_id FROM audience)"
            " ORDER BY 1 LIMIT ?)"
            " SELECT page.subscriber_id, l.state"
            " FROM page LEFT JOIN (SELECT subscriber_id, state FROM ledger WHERE message_key = ?) l"
            " ON l.subscriber_id = page.subscriber_id ORDER BY 1",
            [*audience.params, self.after_subscriber, self.limit, plan.message_key],
        )


@dataclass(frozen=True)
class EnqueueMessage:
    """One message to one person under a campaign's plan: test sends, transactional mail.

    ``occurrence`` is the caller's own name of the message: the same one is the same message. A test
    may go to ``send_to`` instead, filled with the person's values, or with none for ``NOBODY``.
    ``expires_at`` only ever shortens the plan's time.
    Answers ``{"message_key", "state", "reason"}``, also for a message that was there already.
    """

    campaign_id: int
    subscriber_id: int
    occurrence: str
    due_at: datetime | None = None
    key: str | None = None
    send_to: str | None = None
    expires_at: datetime | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        known = find_campaign(database, self.campaign_id)
        if known is None:
            raise NotFound(f"no campaign {self.campaign_id} in this shard", path="campaign_id")
        plan = CampaignPlan.from_json(known.definition)
        if self.send_to is not None and plan.kind is not Kind.TEST:
            raise InvalidRequest(
                f"a {plan.kind} message goes to its person", path="send_to", expected="nothing"
            )
        message_key = enqueued_message_key(self.campaign_id, self.occurrence)
        present = database.rows(
            "SELECT state, reason FROM ledger WHERE subscriber_id = ? AND message_key = ?",
            [self.subscriber_id, message_key],
        )
        if present:
            return Decision(_message_answer(message_key, *present[0]))
        if known.state in (CampaignState.CANCELLED, CampaignState.FINISHED):
            raise Conflict(f"campaign {self.campaign_id} is {known.state}", path="campaign_id")
        people = pa.table({"subscriber_id": pa.array([self.subscriber_id], pa.int64())})
        alone = _Alone(self.due_at, self.expires_at, self.send_to)
        rows = plan_rows(database, context, plan, message_key, people, alone)
        state, reason = rows.column("state")[0].as_py(), rows.column("reason")[0].as_py()
        if reason == "unknown_person":
            raise NotFound(f"no person {self.subscriber_id}", path="subscriber_id")
        answer = _message_answer(message_key, state, reason)
        counted = _campaign_row(self.campaign_id, planned_rows=known.planned_rows + 1)
        return Decision(answer, (Change("ledger", Op.UPSERT, rows), counted))


def enqueued_message_key(campaign_id: int, occurrence: str) -> int:
    return campaign_message_key(campaign_id, hash64("occurrence", occurrence))


class _Alone(NamedTuple):
    """What a message that is enqueued by itself has of its own, beside the plan."""

    due_at: datetime | None = None
    expires_at: datetime | None = None
    send_to: str | None = None


_AS_PLANNED = _Alone()


class Campaign(NamedTuple):
    """A campaign as the shard knows it."""

    state: str
    planning: str
    definition: str
    step: int
    planned_rows: int


def find_campaign(database: Database, campaign_id: int) -> Campaign | None:
    found = database.rows(
        "SELECT state, planning, definition, coalesce(step, 0), coalesce(planned_rows, 0)"
        " FROM campaigns WHERE campaign_id = ?",
        [campaign_id],
    )
    return Campaign(*found[0]) if found else None


def _campaign_row(campaign_id: int, **values: Any) -> Change:
    return Change(
        "campaigns", Op.UPSERT, pa.Table.from_pylist([{"campaign_id": campaign_id} | values])
    )


def plan_rows(
    database: Database,
    context: Context,
    plan: CampaignPlan,
    message_key: int,
    people: pa.Table,
    alone: _Alone = _AS_PLANNED,
) -> pa.Table:
    """Complete new ledger rows for people without one, screened.

    They expire with their campaign. The greatest age of a message counts from its first trouble
    (``ledger.age_limit``), so what waits for us, paused or held back by a warm-up, does not expire.
    """
    count, now = people.num_rows, context.now
    ids = people.column("subscriber_id").to_pylist()
    kind = str(plan.kind)
    wanted = [Wanted(person, kind, plan.channel, plan.topic, alone.send_to) for person in ids]
    screened = screen(database, wanted, context)
    refusals = pa.array(screened.refusals, pa.string())
    allowed = pc.is_null(refusals)
    due_at = alone.due_at or plan.due_at
    due = pa.scalar(due_at, pa.timestamp("us"))
    ends = [at for at in (alone.expires_at, plan.expires_at) if at is not None]
    expires_at = pa.scalar(min(ends, default=None), pa.timestamp("us"))
    instant = pa.scalar(now, pa.timestamp("us"))
    columns = {
        "subscriber_id": people.column("subscriber_id"),
        "message_key": pa.repeat(pa.scalar(message_key, pa.int64()), count),
        "campaign_id": pa.repeat(pa.scalar(plan.campaign_id, pa.int32()), count),
        "kind": pa.repeat(kind, count),
        "channel": pa.repeat(plan.channel, count),
        "state": pc.if_else(allowed, str(State.PLANNED), str(State.SUPPRESSED)),
        "reason": refusals,
        "domain": pa.array(screened.domains, pa.string()),
        "priority": pa.repeat(pa.scalar(plan.priority, pa.uint8()), count),
        "engaged_at": _engaged_at(database, ids),
        "due_at": pc.if_else(allowed, due, pa.scalar(None, pa.timestamp("us"))),
        "expires_at": pa.repeat(expires_at, count),
        "attempts": pa.repeat(pa.scalar(0, pa.uint16()), count),
        "planned_at": pa.repeat(instant, count),
        "changed_at": pa.repeat(instant, count),
    }
    if alone.send_to:
        columns["send_to"] = pa.repeat(alone.send_to, count)
    assert set(columns) <= set(LEDGER.column_names)
    return pa.table(columns)


def _engaged_at(database: Database, people: list[int]) -> pa.Array:
    """The month of the last open or click by a human, for each of the people.

    By the month, since whoever is leased together then lies together in the table: updating 200
    rows that are scattered over a million costs ten times as much as 200 neighbours.
    """
    engaged = dict(
        database.rows(
            "SELECT subscriber_id, max(occurred_at) FROM events"
            " WHERE type IN ('opened', 'clicked') AND subscriber_id IN (SELECT unnest(?))"
            " AND (human IS NULL OR human >= 0.5) GROUP BY 1",
            [people],
        )
    )
    instants = pa.array([engaged.get(person) for person in people], pa.timestamp("us"))
    return pc.floor_temporal(instants, unit="month")


def leave_planned(rows: pa.Table, state: State, reason: str | pa.Array, now: datetime) -> Change:
    """Move planned rows (their keys) on to a final state; one reason, or one for each."""
    move(State.PLANNED, state)
    count = rows.num_rows
    reasons = pa.repeat(reason, count) if isinstance(reason, str) else reason
    return Change(
        "ledger",
        Op.UPSERT,
        pa.table(
            {
                "subscriber_id": rows.column("subscriber_id"),
                "message_key": rows.column("message_key"),
                "state": pa.repeat(str(state), count),
                "reason": reasons,
                "due_at": pa.nulls(count, pa.timestamp("us")),
                "changed_at": pa.repeat(pa.scalar(now, pa.timestamp("us")), count),
            }
        ),
    )


def sweep(database: Database, now: datetime, campaign_id: int, limit: int) -> Change | None:
    """Up to ``limit`` planned rows of a campaign, cancelled; None when there are none."""
    rows = database.table(
        "SELECT subscriber_id, message_key FROM ledger"
        " WHERE due_at IS NOT NULL AND campaign_id = ? LIMIT ?",
        [campaign_id, limit],
    )
    if not rows.num_rows:
        return None
    return leave_planned(rows, State.CANCELLED, "campaign cancelled", now)


def _revocations(database: Database, campaign_id: int) -> tuple[Push, ...]:
    senders = database.rows(
        "SELECT DISTINCT sender FROM ledger"
        " WHERE lease_id IS NOT NULL AND campaign_id = ? AND state = 'leased' ORDER BY 1",
        [campaign_id],
    )
    return tuple(Push(sender, "revoke", (campaign_id, ())) for (sender,) in senders)


def _checked_plan(definition: str, campaign_id: int) -> CampaignPlan:
    if not definition:
        raise InvalidRequest(
            f"campaign {campaign_id} is new to this shard", path="definition", expected="its plan"
        )
    plan = CampaignPlan.from_json(definition)
    if plan.campaign_id != campaign_id:
        raise InvalidRequest(
            f"the plan is of campaign {plan.campaign_id}",
            path="definition.campaign_id",
            expected=str(campaign_id),
        )
    return plan


def _message_answer(message_key: int, state: str, reason: str | None) -> dict[str, Any]:
    return {"message_key": message_key, "state": state, "reason": reason}
