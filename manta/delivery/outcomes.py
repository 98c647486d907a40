"""What became of an attempt, as a value and as a table.

The Sender's journal keeps outcomes, ``leasing.Settle`` and ``leasing.ResolveOrphans`` carry them to
the shard, and the ledger's row keeps the last of each message.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import pyarrow as pa

REPLY_CHARACTERS_MAX = 500
REASON_CHARACTERS_MAX = 100


class OutcomeKind(StrEnum):
    ACCEPTED = "accepted"  # 250 after the final dot
    DEFERRED = "deferred"  # refused for now: again at ``due_at``
    FAILED = "failed"  # refused for good, or impossible to build
    UNCERTAIN = "uncertain"  # the final dot went out and no reply came
    RETURNED = "returned"  # certainly not delivered and not refused: planned again
    EXPIRED = "expired"  # its time has passed


class Outcome(NamedTuple):
    """``due_at`` counts for deferred and returned (None: at once); ``reply_code`` 0: no reply."""

    subscriber_id: int
    message_key: int
    outcome: OutcomeKind
    occurred_at: datetime
    reason: str = ""
    reply_code: int = 0
    reply: str = ""
    source: str = ""
    due_at: datetime | None = None
    bounce_class: str = ""  # of a refusal (``manta.delivery.reputation.observations.BounceClass``)
    category: str = ""  # of the same (``manta.delivery.returns.classification``)


OUTCOME_SCHEMA = pa.schema(
    [
        ("subscriber_id", pa.int64()),
        ("message_key", pa.int64()),
        ("outcome", pa.string()),
        ("occurred_at", pa.timestamp("us")),
        ("reason", pa.string()),
        ("reply_code", pa.uint16()),
        ("reply", pa.string()),
        ("source", pa.string()),
        ("due_at", pa.timestamp("us")),
        ("bounce_class", pa.string()),
        ("category", pa.string()),
    ]
)


def expiry_reason(attempts: int, trouble: str | None = None) -> str:
    """Why a message expired; ``trouble``: what kept it from being delivered at last."""
    tries = f"{attempts} attempt{'s' if attempts > 1 else ''}"
    said = f"expired after {tries}" if attempts else "expired before it was sent"
    return f"{said}: {trouble}" if trouble else said


def outcomes_table(outcomes: Iterable[Outcome]) -> pa.Table:
    columns = list(zip(*outcomes, strict=True)) or [()] * len(OUTCOME_SCHEMA)
    arrays = [
        pa.array(
            [str(value) for value in column] if field.name == "outcome" else column, field.type
        )
        for column, field in zip(columns, OUTCOME_SCHEMA, strict=True)
    ]
    return pa.table(arrays, schema=OUTCOME_SCHEMA)


def outcomes_of(table: pa.Table) -> list[Outcome]:
    columns = [table.column(name).to_pylist() for name in OUTCOME_SCHEMA.names]
    return [
        Outcome(subscriber, key, OutcomeKind(kind), *rest)
        for subscriber, key, kind, *rest in zip(*columns, strict=True)
    ]
