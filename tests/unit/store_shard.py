"""Commands and stores for the tests of the shard's store and actor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import pyarrow as pa

from manta.clock import Clock, ManualClock
from manta.command import Change, Context, Database, Decision, Op, Push
from manta.errors import Conflict
from manta.store.objects import ObjectStore
from manta.store.settings import ShardSettings
from manta.store.shard import Hook, ShardStore

START = datetime(2026, 3, 1, 12)


def upsert(table: str, *rows: dict[str, Any]) -> Change:
    return Change(table, Op.UPSERT, pa.Table.from_pylist(list(rows)))


def delete(table: str, *rows: dict[str, Any]) -> Change:
    return Change(table, Op.DELETE, pa.Table.from_pylist(list(rows)))


def event(subscriber_id: int, kind: str, at: datetime = START, **more: Any) -> Change:
    row = {"subscriber_id": subscriber_id, "type": kind, "occurred_at": at, **more}
    return Change("events", Op.INSERT, pa.Table.from_pylist([row]))


def person(subscriber_id: int, **columns: Any) -> Change:
    return upsert("profiles", {"subscriber_id": subscriber_id, **columns})


@dataclass(frozen=True)
class Write:
    """Writes what it is given; ``answer`` is the number of people it saw before."""

    changes: tuple[Change, ...]
    key: str | None = None
    pushes: tuple[Push, ...] = ()

    def decide(self, database: Database, context: Context) -> Decision:
        seen = database.rows("SELECT count(*) FROM profiles")[0][0]
        return Decision(seen, self.changes, self.pushes)


def write(*changes: Change, key: str | None = None, pushes: tuple[Push, ...] = ()) -> Write:
    return Write(changes, key, pushes)


@dataclass(frozen=True)
class Act:
    """A command that is one function."""

    action: Callable[[Database, Context], Decision] = field(repr=False)
    key: str | None = None

    def decide(self, database: Database, context: Context) -> Decision:
        return self.action(database, context)


def refuse(database: Database, context: Context) -> Decision:
    raise Conflict("no")


def crash(database: Database, context: Context) -> Decision:
    raise KeyError("a mistake of ours")


def abort(database: Database, context: Context) -> Decision:
    """An error of DuckDB's, which aborts the transaction."""
    database.rows("SELECT no_such_column FROM profiles")
    raise AssertionError


def new_store(
    objects: ObjectStore,
    nonce: int = 1,
    clock: Clock | None = None,
    settings: ShardSettings | None = None,
    hooks: tuple[Hook, ...] = (),
) -> ShardStore:
    return ShardStore(
        objects,
        "default",
        0,
        bytes([nonce]) * 16,
        clock or ManualClock(START),
        Random(nonce),
        settings,
        hooks,
    )


def recovered(objects: ObjectStore, nonce: int = 1, **more: Any) -> ShardStore:
    store = new_store(objects, nonce, **more)
    store.recover()
    return store


def flush(store: ShardStore) -> None:
    store.freeze(even_if_early=True)
    store.maintain()


def content(store: ShardStore) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, in one order."""
    from manta.schema import TABLES

    return {name: sorted(store.database.rows(f"SELECT * FROM {name}"), key=repr) for name in TABLES}
