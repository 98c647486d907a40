"""Deliberate mistakes. Each must be caught by the auditor, or the simulation proves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from actors.reputation import ReputationActor
from actors.throttle import COLLECTION, LAW, Throttle
from manta.command import Change, Context, Database, Decision, Op
from manta.delivery import leasing, settling
from manta.delivery.attempts import Attempt, Entry
from manta.delivery.outcomes import Outcome, OutcomeKind
from manta.delivery.sending import Burst, Phase, Sending
from manta.delivery.settling import Orphan, Settle
from manta.delivery.throttle import authority, warmup
from manta.delivery.throttle.budgets import Budgets
from manta.delivery.throttle.gates import Gates
from manta.store.journal import Journal


@dataclass(frozen=True)
class Mutant:
    """Which mistakes are made. None by default. ``patches``: (where, name, what stands there)."""

    seen_by: int = 0  # a seed that noticed it once: it is tried first
    replan_by_time: bool = False  # a lease past its deadline is planned again at once
    returns_lapsed: bool = False  # a Sender brings permits back that are long over
    sending: type[Sending] | None = None
    journal: type[Journal] | None = None
    throttle: type[Throttle] | None = None
    reputation: type[ReputationActor] | None = None
    patches: tuple[tuple[Any, str, Any], ...] = ()

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place, name, value in self.patches:
                stack.enter_context(patch.object(place, name, value))
            yield


def replan(command: Orphan, database: Database, context: Context) -> Decision:
    """``Orphan.decide`` of somebody who trusts time."""
    rows = database.table(
        "SELECT subscriber_id, message_key, 'planned' AS state, ?::TIMESTAMP AS due_at FROM ledger"
        " WHERE lease_id IN (SELECT unnest(?)) AND state = 'leased'",
        [context.now, list(command.lease_ids)],
    )
    return Decision(rows.num_rows, (Change("ledger", Op.UPSERT, pa.table(rows)),))


class HastySending(Sending):
    """Mails go out at once and are settled at once; the journal hears of the attempts later."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._late: list[Attempt] = []

    def take_burst(self, lease_id: int, limit: int, now_s: float, now: datetime) -> Burst | None:
        burst = super().take_burst(lease_id, limit, now_s, now)
        if burst is not None:
            self._storing.remove(burst)
            burst.is_stored = True
            for message in self._messages(burst):
                message.phase = Phase.ATTEMPTED
            self._late += [Attempt(lease_id, *ref) for ref in burst.refs]
        return burst

    def decide(self, lease_id: int, outcome: Outcome) -> None:
        message = self._message(lease_id, outcome)
        message.outcome, message.phase = outcome, Phase.KNOWN

    def next_entry(self) -> Entry | None:
        entry = super().next_entry()
        if entry is not None:
            entry = replace(entry, attempts=(*entry.attempts, *self._late))
            self._late = []
        return entry


class ImpatientSending(Sending):
    """What is not settled within its lease's time goes back, whatever the server has said of it."""

    def next_settle(self, lease_id: int, now_s: float, now: datetime) -> Settle | None:
        lease = self.leases.get(lease_id)
        if lease is not None and now_s - lease.checked_s > self.settings.fresh_s:
            for message in lease.messages.values():
                if message.phase is Phase.KNOWN and message.outcome is not None:
                    message.outcome = message.outcome._replace(outcome=OutcomeKind.RETURNED)
        return super().next_settle(lease_id, now_s, now)


class ForgetfulJournal(Journal):
    """Deletes everything that is covered, the marks of owners included."""

    def truncate(self, up_to: int) -> int:
        doomed = [sequence for sequence in self.sequences() if sequence <= up_to]
        self._objects.delete(self.path(sequence) for sequence in doomed)
        return len(doomed)


class UsurpingThrottle(Throttle):
    """Grants without asking whether another one has taken over."""

    async def _confirmed(self) -> bool:
        return True


class FullThrottle(Throttle):
    """Starts with full buckets."""

    async def recovered(self) -> None:
        await super().recovered()
        self._budgets._gates = Gates(None)


class LawlessThrottle(Throttle):
    """Does not read the law that its journal has."""

    async def recovered(self) -> None:
        await super().recovered()
        self._budgets = Budgets(
            self._sources,
            self._ways,
            empty_at_s=self._clock.monotonic() + self._authority.wait_s(self._clock.monotonic()),
            reserves=self._documents.list("warmup"),
        )

    def stored(self) -> Any:
        return self._documents.get(COLLECTION, LAW)


class HalfDeafReputation(ReputationActor):
    """Tells an undo to nobody."""

    def _tell_law(self) -> None:
        if self._law().actions:
            super()._tell_law()


def _room_of_all(quota: warmup.Quota) -> int:
    return quota.left()


def _not_kept(command: Any, *arguments: Any, **more: Any) -> Any:
    """The last reply goes when a row expires."""
    landed = _LANDED(command, *arguments, **more)
    rows = landed.rows
    if "reply" in rows.column_names and "expired" in rows.column("state").to_pylist():
        rows = rows.drop_columns(["reply"])
    return Change(landed.table, landed.op, rows)


_LANDED = settling._landed
_NEVER = timedelta(days=-400)

MUTANTS: dict[str, Mutant] = {
    "plans again by time alone": Mutant(seen_by=20, replan_by_time=True),
    "stores attempts late": Mutant(seen_by=84, sending=HastySending),
    "deletes epoch entries": Mutant(seen_by=4, journal=ForgetfulJournal),
    "resends after a deadline": Mutant(seen_by=279, sending=ImpatientSending),
    "grants without authority": Mutant(seen_by=29, throttle=UsurpingThrottle),
    "takes over without a wait": Mutant(seen_by=25, patches=((authority, "TAKEOVER_WAIT_S", 0.0),)),
    "starts with full buckets": Mutant(seen_by=11, throttle=FullThrottle),
    "forgets the law": Mutant(seen_by=45, throttle=LawlessThrottle),
    "uses quotas that are not set aside": Mutant(
        seen_by=88, patches=((warmup.Quota, "room", _room_of_all),)
    ),
    "lets anybody retry what was greylisted": Mutant(
        seen_by=1, patches=((leasing, "GREYLISTED_OPEN_AFTER", _NEVER),)
    ),
    "drops the reply of what expires": Mutant(
        seen_by=50, patches=((settling, "_landed", _not_kept),)
    ),
    "tells no undo": Mutant(seen_by=20, reputation=HalfDeafReputation),
    "returns lapsed permits": Mutant(seen_by=32, returns_lapsed=True),
}
