"""Deliberate mistakes. Each must be caught by the auditor, or the simulation proves nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.delivery.attempts import Attempt, Entry
from manta.delivery.outcomes import Outcome
from manta.delivery.sending import Burst, Phase, Sending
from manta.delivery.settling import Orphan
from manta.store.journal import Journal


@dataclass(frozen=True)
class Mutant:
    """Which mistakes are made. None by default."""

    replan_by_time: bool = False  # a lease past its deadline is planned again at once
    attempt_stored_late: bool = False  # mails go out, and are settled, before the attempt is stored
    epochs_deleted: bool = False  # truncation takes the EPOCH entries too


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


class ForgetfulJournal(Journal):
    """Deletes everything that is covered, the marks of owners included."""

    def truncate(self, up_to: int) -> int:
        doomed = [sequence for sequence in self.sequences() if sequence <= up_to]
        self._objects.delete(self.path(sequence) for sequence in doomed)
        return len(doomed)
