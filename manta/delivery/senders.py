"""What a shard knows of each Sender: which incarnation may lease, and how long its journal is.

A lease under an epoch older than the known one is refused, so that nothing of a fenced incarnation
is granted behind the back of whoever reads its journal. ``journal_sequence`` is the last entry that
the Sender itself has named: a journal found shorter than that has lost its end.
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
        return Decision(known_sender(database, self.sender))


def known_sender(database: Database, sender: str) -> Known:
    found = database.rows("SELECT epoch, journal_sequence FROM senders WHERE sender = ?", [sender])
    return Known(*found[0]) if found else Known(0, 0)


def refuse_older(sender: str, epoch: int, known: Known) -> None:
    if epoch < known.epoch:
        raise Fenced(
            f"{sender} of epoch {epoch} must stop: this shard knows epoch {known.epoch}",
            epoch=known.epoch,
        )


def witness(
    database: Database, sender: str, epoch: int, journal_sequence: int, now: datetime
) -> Change:
    known = known_sender(database, sender)
    refuse_older(sender, epoch, known)
    return sender_row(sender, epoch, max(known.journal_sequence, journal_sequence), now)


def sender_row(sender: str, epoch: int, journal_sequence: int, now: datetime) -> Change:
    row = {
        "sender": [sender],
        "epoch": pa.array([epoch], pa.int64()),
        "journal_sequence": pa.array([journal_sequence], pa.int64()),
        "changed_at": pa.array([now], pa.timestamp("us")),
    }
    return Change("senders", Op.UPSERT, pa.table(row))
