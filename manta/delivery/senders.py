"""What a shard knows of each Sender: which incarnation may lease, and how long its journal is.

A lease under an epoch older than the known one is refused, so that nothing of a fenced incarnation
is granted behind the back of whoever reads its journal. ``journal_sequence`` is the last entry that
the Sender itself has named with a lease or a settle: a journal found shorter has lost its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from manta.command import Change, Context, Database, Decision, Op
from manta.errors import Fenced


class Known(NamedTuple):
    """What a shard knows of a Sender: 0 and 0 if nothing."""

    epoch: int
    journal_sequence: int


@dataclass(frozen=True)
class SenderKnown:
    """What the shard knows of a Sender, before its journal is taken over. Answers ``Known``."""

    sender: str
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        return Decision(Known(known_epoch(database, self.sender), told_of(database, self.sender)))


def known_epoch(database: Database, sender: str) -> int:
    found = database.rows("SELECT epoch FROM senders WHERE sender = ?", [sender])
    return int(found[0][0]) if found else 0


def told_of(database: Database, sender: str) -> int:
    """The greatest number of a journal entry that the Sender has named; 0 if none."""
    found = database.rows(
        "SELECT max(journal_sequence) FROM ledger WHERE lease_id IS NOT NULL AND sender = ?",
        [sender],
    )
    return int(found[0][0] or 0)


def refuse_older(database: Database, sender: str, epoch: int) -> None:
    """Raises ``Fenced`` for an incarnation older than one that has spoken to this shard."""
    known = known_epoch(database, sender)
    if epoch < known:
        raise Fenced(
            f"{sender} of epoch {epoch} must stop: this shard knows epoch {known}", epoch=known
        )


def confirmation(database: Database, sender: str, epoch: int, now: datetime) -> Change:
    """A change for an answer that changes nothing else and that a Sender acts upon.

    Without a change nothing is appended, and only an append shows a shard's incarnation that it
    has been replaced: one that has would say "no such message" of what its successor holds.
    """
    return sender_row(sender, max(known_epoch(database, sender), epoch), now)


def sender_row(sender: str, epoch: int, now: datetime) -> Change:
    row = {
        "sender": [sender],
        "epoch": pa.array([epoch], pa.int64()),
        "changed_at": pa.array([now], pa.timestamp("us")),
    }
    return Change("senders", Op.UPSERT, pa.table(row))
