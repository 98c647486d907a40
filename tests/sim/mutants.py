"""Deliberate mistakes. Each must be caught by the auditor, or the simulation proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
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


class ForgetfulJournal(Journal):
    """Deletes everything that is covered, the marks of owners included."""

    def truncate(self, up_to: int) -> int:
        doomed = [sequence for sequence in self.sequences() if sequence <= up_to]
        self._objects.delete(self.path(sequence) for sequence in doomed)
        return len(doomed)
