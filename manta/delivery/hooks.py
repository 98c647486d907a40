"""What a shard does by itself for sending, after its commits and as time passes.

``SendingHook`` looks at the committed ledger and

- tells the Director what is due where, whenever that has changed, and what is held;
- makes orphans of leases past their deadline, and tells the Director whose journals to read;
- expires planned rows, and cancels what a cancelled campaign has left.

It keeps nothing that counts: deadlines are durations on this process's monotonic clock, so after a
recovery every lease gets a fresh one, and a report that was lost is sent again while there is
anything to report. One look costs two passes over a few columns (35 ms for a million rows), so the
gap between looks grows with what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from manta.clock import Clock
from manta.command import Command, Context, Database, Push
from manta.delivery.campaign import CampaignPlan, CampaignState
from manta.delivery.ledger import State
from manta.delivery.planning import ExpireRows, SweepCampaign
from manta.delivery.settling import Orphan

# A report names so many domains of a campaign at most; the rest stands under None. Half of them are
# the longest queues, half take turns, so that domains nobody can reach keep no others waiting.
DOMAINS_MAX = 1_000
TURN_S = 30.0


@dataclass(frozen=True)
class HookSettings:
    """A lease must outlast the slowest SMTP reply (RFC 5321 §4.5.3.2.6 allows 10 minutes)."""

    lease_deadline_s: float = 900.0
    repeat_s: float = 30.0  # reports are sent again after this while there is work
    min_gap_s: float = 0.05
    max_gap_s: float = 1.0
    cost_share: float = 0.01  # of the time, at most


class Work(NamedTuple):
    """What a campaign has to do in a shard for one domain (None: several, or none of them due).

    ``due`` rows may be leased now, the next others from ``next_due_at`` on; ``held`` are with
    Senders or orphaned. A campaign of which no shard reports anything has nothing pending.
    """

    source: str
    domain: str | None
    campaign_id: int
    due: int
    next_due_at: datetime | None
    held: int = 0


class HookResult(NamedTuple):
    """See ``manta.store.shard.HookResult``."""

    pushes: tuple[Push, ...]
    commands: tuple[Command, ...]
    next_wake: datetime | None


class _Held(NamedTuple):
    campaign_id: int
    lease_id: int
    state: str
    sender: str
    sender_epoch: int
    messages: int


class _Planned(NamedTuple):
    campaign_id: int
    domain: str
    due: int
    next_due_at: datetime | None
    expires_at: datetime | None


class SendingHook:
    """One shard's hook. Called in the writer's thread; not shared."""

    tables = frozenset({"ledger", "campaigns"})

    def __init__(self, clock: Clock, settings: HookSettings | None = None) -> None:
        self.settings = settings or HookSettings()
        self._clock = clock
        self._cost_s = 0.0
        self._deadlines: dict[int, float] = {}
        self._reported: tuple[Work, ...] | None = None
        self._report_again: datetime | None = None
        self._orphans_due: dict[tuple[str, int], datetime] = {}  # when to tell the Director

    @property
    def min_gap_s(self) -> float:
        """The time between looks: longer where a look costs more."""
        gap_s = self._cost_s / self.settings.cost_share
        return min(max(gap_s, self.settings.min_gap_s), self.settings.max_gap_s)

    def after_commit(self, database: Database, context: Context) -> HookResult:
        began_s = self._clock.monotonic()
        campaigns = _campaigns(database)
        planned, held = _planned(database, context.now), _held(database)
        self._cost_s = self._clock.monotonic() - began_s
        overdue, lease_wakes = self._overdue(held, context.now)
        commands: list[Command] = [Orphan(overdue)] if overdue else []
        commands += _housekeeping(planned, campaigns, context.now)
        report = tuple(_report(planned, held, campaigns, context.now))
        pushes = [*self._report(report, context), *self._orphans(held, database, context)]
        wakes = [*lease_wakes, self._report_again, *self._orphans_due.values()]
        wakes += [row.expires_at for row in planned]
        wakes += [work.next_due_at for work in report]
        later = [wake for wake in wakes if wake is not None and wake > context.now]
        return HookResult(tuple(pushes), tuple(commands), min(later, default=None))

    def _overdue(
        self, held: list[_Held], now: datetime
    ) -> tuple[tuple[int, ...], list[datetime | None]]:
        """Leases past their deadline, and when to look again for each of the others."""
        leased = {row.lease_id for row in held if row.state == State.LEASED}
        monotonic_s = self._clock.monotonic()
        fresh = monotonic_s + self.settings.lease_deadline_s
        self._deadlines = {i: self._deadlines.get(i, fresh) for i in sorted(leased)}
        overdue = tuple(i for i, deadline in self._deadlines.items() if deadline <= monotonic_s)
        wakes = [
            now + timedelta(seconds=deadline - monotonic_s)
            for deadline in self._deadlines.values()
            if deadline > monotonic_s
        ]
        return overdue, list(wakes)

    def _report(self, report: tuple[Work, ...], context: Context) -> list[Push]:
        now = context.now
        is_time = self._report_again is not None and self._report_again <= now
        if report == self._reported and not is_time:
            return []
        self._reported = report
        again = now + timedelta(seconds=self.settings.repeat_s)
        self._report_again = again if report else None
        return [Push("director", "work", (context.shard, list(report)))]

    def _orphans(self, held: list[_Held], database: Database, context: Context) -> list[Push]:
        """The Senders (with epoch) whose journals the Director has to read.

        Where the shard knows a later epoch, somebody has fenced that journal and is reading it
        now: the Director is told only if the orphans are still there after a while.
        """
        orphaned = {(row.sender, row.sender_epoch) for row in held if row.state == State.ORPHANED}
        self._orphans_due = {key: at for key, at in self._orphans_due.items() if key in orphaned}
        if not orphaned:
            return []
        later = context.now + timedelta(seconds=self.settings.repeat_s)
        known = dict(database.rows("SELECT sender, epoch FROM senders"))
        for sender, epoch in orphaned - self._orphans_due.keys():
            is_being_read = known.get(sender, 0) > epoch
            self._orphans_due[sender, epoch] = later if is_being_read else context.now
        tell = sorted(key for key, at in self._orphans_due.items() if at <= context.now)
        self._orphans_due |= dict.fromkeys(tell, later)
        return [Push("director", "orphans", (context.shard, tell))] if tell else []


def delivery_hooks(clock: Clock, settings: HookSettings | None = None) -> tuple[SendingHook, ...]:
    """The hooks of one incarnation of a shard."""
    return (SendingHook(clock, settings),)


def work(database: Database, context: Context, arguments: Mapping[str, Any]) -> list[Work]:
    """The report as a read, for a Director that has just started."""
    planned, held = _planned(database, context.now), _held(database)
    return list(_report(planned, held, _campaigns(database), context.now))


def _campaigns(database: Database) -> dict[int, tuple[str, str]]:
    """Campaign → (state, source)."""
    return {
        campaign_id: (state, CampaignPlan.from_json(definition).source)
        for campaign_id, state, definition in database.rows(
            "SELECT campaign_id, state, definition FROM campaigns ORDER BY 1"
        )
    }


def _planned(database: Database, now: datetime) -> list[_Planned]:
    rows = database.rows(
        "SELECT campaign_id, domain, count(*) FILTER (due_at <= ?),"
        " min(due_at) FILTER (due_at > ?), min(expires_at)"
        " FROM ledger WHERE due_at IS NOT NULL GROUP BY ALL ORDER BY ALL",
        [now, now],
    )
    return [_Planned(*row) for row in rows]


def _held(database: Database) -> list[_Held]:
    rows = database.rows(
        "SELECT campaign_id, lease_id, state, sender, sender_epoch, count(*) FROM ledger"
        " WHERE lease_id IS NOT NULL AND state IN ('leased', 'orphaned')"
        " GROUP BY ALL ORDER BY ALL"
    )
    return [_Held(*row) for row in rows]


def _housekeeping(
    planned: list[_Planned], campaigns: dict[int, tuple[str, str]], now: datetime
) -> list[Command]:
    commands: list[Command] = []
    if any(row.expires_at is not None and row.expires_at <= now for row in planned):
        commands.append(ExpireRows())
    left = {row.campaign_id for row in planned}
    commands += [
        SweepCampaign(campaign_id)
        for campaign_id in sorted(left & campaigns.keys())
        if campaigns[campaign_id][0] == CampaignState.CANCELLED
    ]
    return commands


def _named(rows: list[_Planned], now: datetime) -> tuple[list[_Planned], list[_Planned]]:
    """The rows that a report names, and the others."""
    rows = sorted(rows, key=lambda row: (-row.due, row.domain))
    if len(rows) <= DOMAINS_MAX:
        return rows, []
    longest, rest = rows[: DOMAINS_MAX // 2], rows[DOMAINS_MAX // 2 :]
    turn = DOMAINS_MAX - len(longest)
    start = int(now.timestamp() // TURN_S) * turn % len(rest)
    rest = rest[start:] + rest[:start]
    return longest + rest[:turn], rest[turn:]


def _report(
    planned: list[_Planned],
    held: list[_Held],
    campaigns: dict[int, tuple[str, str]],
    now: datetime,
) -> Iterator[Work]:
    for campaign_id, (state, source) in campaigns.items():
        mine = [row for row in planned if row.campaign_id == campaign_id]
        with_senders = sum(row.messages for row in held if row.campaign_id == campaign_id)
        if state == CampaignState.RUNNING:
            named, mine = _named(mine, now)
            for row in named:
                yield Work(source, row.domain, campaign_id, row.due, row.next_due_at)
        elif mine:  # paused: pending, but nothing may be leased
            yield Work(source, None, campaign_id, 0, None)
            mine = []
        nexts = [row.next_due_at for row in mine if row.next_due_at is not None]
        if mine or with_senders:
            due = sum(row.due for row in mine)
            yield Work(source, None, campaign_id, due, min(nexts, default=None), with_senders)
