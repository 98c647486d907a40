"""Commands: how anything in a shard changes.

A command is a frozen dataclass that travels as a value. Inside the owner's one writer loop it
reads the database and *decides*: it returns the rows that change, the answer, and what to tell
others once the change is stored. It touches nothing else, so the same decision can be journaled,
replayed, simulated and tested without any actor.

Order in the loop: decide → apply → (next command) → append the journal entry → commit → reply and
push. A command that raises is left out and only its caller gets the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from random import Random
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manta.schema import TABLES


class Database(Protocol):
    """What a decision may do with the shard's database: read.

    ``tables`` registers Arrow tables under those names for the one statement, so that a batch can
    be joined set-wise. Values go in as ``params`` and never as text. ``hints`` is where a decision
    may leave what it found out for later ones, which check it: it is lost at any time.
    """

    hints: dict[Any, Any]

    def rows(
        self, sql: str, params: Sequence[Any] = (), **tables: pa.Table
    ) -> list[tuple[Any, ...]]: ...

    def table(self, sql: str, params: Sequence[Any] = (), **tables: pa.Table) -> pa.Table: ...

    def columns(self, table: str) -> Mapping[str, str]: ...

    def here(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these people have a profile; much cheaper than to ask in SQL."""
        ...

    def may_hold_events(self, event_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """False of an event id: it is certainly not in memory."""
        ...


class Op(StrEnum):
    UPSERT = "upsert"  # rows by key; columns that are not given keep their value, or are NULL
    DELETE = "delete"  # rows hold the key columns
    INSERT = "insert"  # append-only tables


@dataclass(frozen=True)
class Change:
    """Changed rows of one table. Within one change each key stands at most once."""

    table: str
    op: Op
    rows: pa.Table

    def __post_init__(self) -> None:
        table = TABLES[self.table]
        if (self.op is Op.INSERT) != (not table.key):
            raise ValueError(f"{self.op} does not fit table {self.table}")


@dataclass(frozen=True)
class Push:
    """Something to tell another actor after the commit: a hint that may be lost.

    ``to`` is an actor's role within the workspace (``director``, ``sender-03``); the method is
    called with the arguments and nobody waits for it.
    """

    to: str
    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Decision:
    """``answer`` goes back to the caller; for a command with key it must pickle small."""

    answer: Any = None
    changes: tuple[Change, ...] = ()
    pushes: tuple[Push, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a decision may know besides the database."""

    now: datetime
    random: Random
    workspace: str
    shard: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Repeated:
    """The answer to a command whose key has been committed before: it was not run again."""

    key: str


class Command(Protocol):
    """``key`` makes a command idempotent for 48 h: the caller's own, stable over its retries."""

    @property
    def key(self) -> str | None: ...

    def decide(self, database: Database, context: Context) -> Decision: ...
