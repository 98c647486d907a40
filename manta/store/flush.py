"""From the journal's tail to files of the lake.

The writer notes for each group which keys changed and which events came (``Tail``). A flush first
*freezes*: the writer, between two groups, hands over what it noted together with a read
transaction that is pinned to that moment, and goes on. In the background the present rows of the
changed keys are read through the pin and written as one delta file per table: whole rows with
``_sequence`` (the journal sequence that they are of) and ``_deleted`` (a tombstone, key only). Of a
key in several files the row with the highest ``_sequence`` holds. Events, which never change, are
written as they came; history events (see the schema) in files of their own, which no recovery
reads.

On crash: files that no manifest names are garbage, and the journal still has everything. A
snapshot whose writing failed is kept and written again, before the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manta.schema import EVENTS, HISTORY_EVENTS, TABLES
from manta.store.database import Reader, ShardDatabase
from manta.store.entries import Group
from manta.store.keys import Hashes
from manta.store.manifest import FileEntry
from manta.store.objects import ObjectStore
from manta.store.statements import arrow_schema

FORMAT_VERSION = 1
FORMAT_METADATA = {"manta.format": str(FORMAT_VERSION)}
SEQUENCE, DELETED = "_sequence", "_deleted"
KEYS = "_keys"  # the pseudo-table of idempotency keys
HOT, HISTORY, DELTA, KEY_FILE = "events", "history", "delta", "keys"  # FileEntry.kind
ROW_GROUP_ROWS = 122_880


@dataclass
class Tail:
    """What has been committed since the last freeze."""

    dirty: dict[str, list[pa.Table]] = field(default_factory=dict)
    events: list[pa.Table] = field(default_factory=list)
    keys: dict[date, list[int]] = field(default_factory=dict)
    captured: dict[str, pa.Table] = field(default_factory=dict)
    size_bytes: int = 0  # as rows in memory, which bounds what a replay costs
    since_s: float | None = None  # monotonic instant of the first of them

    def add(self, group: Group, at_s: float) -> None:
        for change in group.changes:
            self.size_bytes += change.rows.nbytes
            if change.table == EVENTS.name:
                self.events.append(change.rows)
            else:
                key = change.rows.select(list(TABLES[change.table].key))
                self.dirty.setdefault(change.table, []).append(key)
        if group.keys:
            self.keys.setdefault(group.at.date(), []).extend(group.keys)
        if self.since_s is None:
            self.since_s = at_s

    def capture(
        self, database: ShardDatabase, table: str, where: str, params: list[Any], sequence: int
    ) -> None:
        """Set rows aside that are to leave memory before they have been flushed."""
        if table not in self.dirty:
            return
        using = ", ".join(TABLES[table].key)
        changed = pa.concat_tables(self.dirty[table])
        leaving = database.table(
            f"SELECT t.*, {int(sequence)}::BIGINT AS {SEQUENCE}, FALSE AS {DELETED} "
            f"FROM {table} t SEMI JOIN _changed USING ({using}) WHERE {where}",
            params,
            _changed=changed,
        )
        if leaving.num_rows:
            staying = database.table(
                f"SELECT {using} FROM _changed ANTI JOIN _leaving USING ({using})",
                _changed=changed,
                _leaving=leaving,
            )
            self.dirty[table] = [staying]
            held = self.captured.get(table)
            self.captured[table] = pa.concat_tables([held, leaving]) if held else leaving

    def freeze(self, database: ShardDatabase, epoch: int, sequence: int) -> Snapshot:
        """Hand over all that was noted, pinned to now, and start afresh."""
        pin = database.reader()
        pin.pin()
        snapshot = Snapshot(
            epoch,
            sequence,
            pin,
            dict(self.dirty),
            list(self.events),
            {day: np.array(keys, np.int64) for day, keys in self.keys.items()},
            self.captured,
            self.size_bytes,
        )
        self.dirty, self.events, self.keys, self.captured = {}, [], {}, {}
        self.size_bytes, self.since_s = 0, None
        return snapshot


class Snapshot:
    """A frozen tail. ``write`` may be called again after a failure and writes the same files."""

    def __init__(
        self,
        epoch: int,
        sequence: int,
        pin: Reader,
        dirty: dict[str, list[pa.Table]],
        events: list[pa.Table],
        keys: dict[date, Hashes],
        captured: dict[str, pa.Table],
        tail_bytes: int,
    ) -> None:
        self.epoch, self.sequence, self.tail_bytes = epoch, sequence, tail_bytes
        self._pin: Reader | None = pin
        self._dirty, self._events, self._keys = dirty, events, keys
        self._captured = captured
        self._tables: list[tuple[str, str, pa.Table]] = []  # table, kind, rows

    def write(self, objects: ObjectStore, lake_prefix: str) -> dict[str, list[FileEntry]]:
        """Write the files; table → entries. Raises ``StoreUnavailable``: call again later."""
        self.read()
        files: dict[str, list[FileEntry]] = {}
        for table, kind, rows in self._tables:
            name = f"{self.epoch:06d}-{self.sequence:012d}-{kind}.parquet"
            path = f"{lake_prefix}/{table}/{name}"
            data = to_parquet(rows)
            objects.put(path, data)
            files.setdefault(table, []).append(
                file_entry(path, rows, len(data), kind, self.sequence)
            )
        return files

    def read(self) -> None:
        """Take the rows out of the database and let the pin go; once."""
        if self._pin is None:
            return
        tables = [
            (table, DELTA, self._state_rows(self._pin, table, pa.concat_tables(keys)))
            for table, keys in self._dirty.items()
        ]
        if self._events:
            rows = pa.concat_tables(self._events, promote_options="default")
            tables.extend(split_events(rows))
        if self._keys:
            tables.append((KEYS, KEY_FILE, _key_table(self._keys)))
        self._tables = tables
        self._pin.close()
        self._pin, self._dirty, self._events, self._keys = None, {}, [], {}
        self._captured = {}

    def _state_rows(self, pin: Reader, table: str, keys: pa.Table) -> pa.Table:
        """The delta of a table: what stands now under the changed keys, and what was set aside."""
        present = _present_rows(pin, table, keys, self.sequence)
        captured = self._captured.get(table)
        if captured is None:
            return present
        using = ", ".join(TABLES[table].key)
        return pin.table(
            f"FROM _present UNION ALL BY NAME (FROM _captured ANTI JOIN _present USING ({using}))",
            _present=present,
            _captured=captured,
        )


def _present_rows(pin: Reader, table: str, keys: pa.Table, sequence: int) -> pa.Table:
    key = TABLES[table].key
    using = ", ".join(key)
    named = ", ".join(f"k.{column}" for column in key)
    return pin.table(
        f"SELECT {named}, t.* EXCLUDE ({using}, _there), {int(sequence)}::BIGINT AS {SEQUENCE}, "
        f"_there IS NULL AS {DELETED} "
        f"FROM (SELECT DISTINCT {using} FROM _keys_changed) k "
        f"LEFT JOIN (SELECT *, TRUE AS _there FROM {table}) t USING ({using}) ORDER BY {using}",
        _keys_changed=keys,
    )


def split_events(rows: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """The hot events and the history among these rows, each in order of time."""
    columns = [
        rows.column(name) if name in rows.column_names else pa.nulls(rows.num_rows)
        for name in EVENTS.column_names
    ]
    complete = pa.table(columns, names=list(EVENTS.column_names)).cast(arrow_schema(EVENTS))
    is_history = pc.is_in(complete.column("type"), value_set=pa.array(HISTORY_EVENTS))
    for kind, part in (
        (HOT, complete.filter(pc.invert(is_history))),
        (HISTORY, complete.filter(is_history)),
    ):
        if part.num_rows:
            yield EVENTS.name, kind, part.sort_by("occurred_at")


def _key_table(keys: dict[date, Hashes]) -> pa.Table:
    days = [pa.array([day] * len(hashes), pa.date32()) for day, hashes in keys.items()]
    hashes = [pa.array(hashes, pa.int64()) for hashes in keys.values()]
    return pa.table({"day": pa.chunked_array(days), "hash": pa.chunked_array(hashes)})


def to_parquet(rows: pa.Table) -> bytes:
    """The rows as one Parquet file."""
    sink = BytesIO()
    marked = rows.replace_schema_metadata(FORMAT_METADATA)
    pq.write_table(marked, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def file_entry(path: str, rows: pa.Table, size_bytes: int, kind: str, sequence: int) -> FileEntry:
    earliest = latest = None
    if kind in (HOT, HISTORY):
        times = pc.min_max(rows.column("occurred_at"))
        earliest, latest = times["min"].as_py(), times["max"].as_py()
    elif kind == KEY_FILE:
        latest = datetime.combine(pc.max(rows.column("day")).as_py(), time.min)
    return FileEntry(
        path=path,
        rows=rows.num_rows,
        size_bytes=size_bytes,
        kind=kind,
        min_time=earliest,
        max_time=latest,
        sequence_from=sequence,
        sequence_to=sequence,
    )
