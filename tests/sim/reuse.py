"""Shard databases for one run after another: to make one costs as much as a whole run."""

from __future__ import annotations

import duckdb

from manta.schema import TABLES
from manta.store.database import ShardDatabase
from manta.store.entries import Group
from manta.store.shard import ShardStore
from manta.store.statements import create

_free: list[_Kept] = []


class _Kept(ShardDatabase):
    """Closing gives it back."""

    is_clean = True

    def __init__(self) -> None:
        super().__init__()
        # Ten rows need no plan, and to make one would cost half of a run.
        self._connection.execute("PRAGMA disable_optimizer")

    def begin(self) -> None:
        self.is_clean = False
        super().begin()

    def begin_loading(self) -> None:
        """The indexes stay: what a run loads is small, and to build them is not."""

    def end_loading(self) -> None:
        pass

    def lock_down(self) -> None:
        """The next run sets it up again."""

    def close(self) -> None:
        if self not in _free:
            _free.append(self)


def _empty() -> ShardDatabase:
    if not _free:
        return _Kept()
    database = _free.pop()
    if not database.is_clean:
        try:
            database.rollback()
        except duckdb.Error:  # no transaction was open
            database._waiting.clear()
        for table, count in database.row_counts().items():
            if count:
                # Made anew: where deleted rows lay would show in the order of later ones.
                database._connection.execute(f"DROP TABLE {table}")
                database._connection.execute(create(TABLES[table]))
                database._create_indexes(TABLES[table])
        database.is_clean = True
    assert not set(database.columns("profiles")) - set(TABLES["profiles"].column_names)
    return database


class ReusingStore(ShardStore):
    """A ``ShardStore`` that gets its empty databases from those that are no longer used.

    ``has_moved``: rows of the ledger were written since somebody looked."""

    has_moved = True

    def _committed(self, group: Group) -> None:
        super()._committed(group)
        self.has_moved |= any(change.table == "ledger" for change in group.changes)

    def _empty_database(self) -> ShardDatabase:
        return _empty()
