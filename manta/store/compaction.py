"""Which files of a shard become one, and how.

The plan is pure and size-tiered: files of one table fall into size classes, each ``merge_files``
times the one below, and ``merge_files`` files of a class (with all smaller ones) are merged. A
state table is merged whole when its newer files outweigh its largest, which bounds both what a
recovery has to read and what superseded rows cost. Event parts grow by classes until 64 MB are
merged; then they are split into folders by month, where the same classes apply, and a month's file
of 64 MB or more is final. So a byte is written at most about five times in its life.

In a merge of state the row with the highest ``_sequence`` of a key holds, whatever files are
merged; a tombstone is dropped once no older file is left that could hold its key. Of events with
one id the first is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq

from manta.schema import EVENTS, TABLES
from manta.store.database import PARQUET, connect
from manta.store.flush import DELETED, FORMAT_METADATA, KEYS, ROW_GROUP_ROWS, SEQUENCE
from manta.store.manifest import FileEntry
from manta.store.settings import ShardSettings

_SMALLEST_CLASS_BYTES = 64 << 10
_MONTH_FOLDER = re.compile(r"/(\d{4}-\d{2})/[^/]+$")


class Part(NamedTuple):
    """Files that may be merged with each other: of one table, kind and month (or of none)."""

    table: str
    kind: str
    month: str


@dataclass(frozen=True)
class Merge:
    """One merge to do. ``by_month``: the output is split into months."""

    part: Part
    inputs: tuple[FileEntry, ...]
    by_month: bool = False
    drop_tombstones: bool = False


@dataclass(frozen=True)
class MergedFile:
    """One output of a merge, still in the scratch folder."""

    local: Path
    month: str
    rows: int
    size_bytes: int
    min_time: datetime | None
    max_time: datetime | None


def plan(files: Mapping[str, Sequence[FileEntry]], settings: ShardSettings) -> Merge | None:
    """The next merge worth doing, or ``None``."""
    parts = _parts(files)
    for part, members in parts.items():
        chosen = _full_class(part, members, settings) or _outweighed(part, members)
        if chosen:
            return _merge(part, chosen, members, settings)
    if sum(map(len, parts.values())) > settings.live_files_max:
        part, members = max(parts.items(), key=lambda item: len(item[1]))
        if len(members) > 1:
            smallest = sorted(members, key=lambda file: file.size_bytes)
            return _merge(part, smallest[: settings.merge_files], members, settings)
    return None


def _parts(files: Mapping[str, Sequence[FileEntry]]) -> dict[Part, list[FileEntry]]:
    parts: dict[Part, list[FileEntry]] = {}
    for table, entries in files.items():
        for entry in entries:
            found = _MONTH_FOLDER.search(entry.path)
            part = Part(table, entry.kind, found.group(1) if found else "")
            parts.setdefault(part, []).append(entry)
    return parts


def _size_class(file: FileEntry, settings: ShardSettings) -> int:
    size, number = _SMALLEST_CLASS_BYTES, 0
    while file.size_bytes >= size:
        size, number = size * settings.merge_files, number + 1
    return number


def _full_class(
    part: Part, members: list[FileEntry], settings: ShardSettings
) -> list[FileEntry] | None:
    """All files up to the highest size class that is full."""
    if part.table == EVENTS.name and part.month:
        members = [f for f in members if f.size_bytes < settings.month_file_bytes]
    ordered = sorted(members, key=lambda file: file.size_bytes)
    chosen: list[FileEntry] | None = None
    taken: list[FileEntry] = []
    for _, group in groupby(ordered, key=lambda file: _size_class(file, settings)):
        of_class = list(group)
        taken += of_class
        if len(of_class) >= settings.merge_files:
            chosen = list(taken)
    return chosen


def _outweighed(part: Part, members: list[FileEntry]) -> list[FileEntry] | None:
    if part.table == EVENTS.name or part.table == KEYS or len(members) < 3:
        return None
    largest = max(file.size_bytes for file in members)
    total = sum(file.size_bytes for file in members)
    return members if total - largest >= largest >= _SMALLEST_CLASS_BYTES else None


def _merge(
    part: Part, chosen: list[FileEntry], members: list[FileEntry], settings: ShardSettings
) -> Merge:
    if part.table == EVENTS.name:
        chosen = _up_to(chosen, settings.month_file_bytes_max)
        large = sum(file.size_bytes for file in chosen) >= settings.month_file_bytes
        return Merge(part, tuple(chosen), by_month=large and not part.month)
    newest = max(file.sequence_to for file in chosen)
    left = [file for file in members if file not in chosen]
    nothing_older = all(file.sequence_from > newest for file in left)
    return Merge(part, tuple(chosen), drop_tombstones=nothing_older)


def _up_to(files: list[FileEntry], size_bytes: int) -> list[FileEntry]:
    taken: list[FileEntry] = []
    total = 0
    for file in sorted(files, key=lambda file: file.size_bytes):
        if len(taken) >= 2 and total + file.size_bytes > size_bytes:
            break
        taken.append(file)
        total += file.size_bytes
    return taken


# -- doing it --------------------------------------------------------------------------------------


def run_merge(
    merge: Merge, paths: Sequence[str], scratch: Path, memory_mb: int, keys_since: date
) -> list[MergedFile]:
    """Merge local input files into files in ``scratch``, in a database of its own that spills."""
    config = {
        "threads": "1",
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(scratch / "spill"),
    }
    connection = connect(config)
    try:
        query = _query(merge)
        params: list[object] = [list(paths)]
        if merge.part.table == KEYS:
            params.append(keys_since)
        is_event, month = merge.part.table == EVENTS.name, merge.part.month
        asked = [(query, params, month)]
        if merge.by_month:
            asked = [
                (_of_month(query), [*params, first, after], month)
                for month, first, after in _months(merge.inputs)
            ]
        outputs = [
            write_file(connection, sql, values, scratch / f"{month}.parquet", is_event, month)
            for sql, values, month in asked
        ]
        return [output for output in outputs if output is not None]
    finally:
        connection.close()


def _query(merge: Merge) -> str:
    table = merge.part.table
    if table == KEYS:
        return f"SELECT DISTINCT day, hash FROM {PARQUET} WHERE day >= ? ORDER BY day, hash"
    if table == EVENTS.name:
        # A copy that a merge made is not a repetition of another merge's, nor an original of its
        # event. Files of earlier releases lack columns: the empty relation brings them.
        first = (
            "row_number() OVER (PARTITION BY subscriber_id, event_id, merge_id,"
            " type = 'received' ORDER BY occurred_at)"
        )
        typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in EVENTS.columns)
        return (
            f"SELECT * FROM (SELECT {typed} WHERE false UNION ALL BY NAME SELECT * FROM {PARQUET})"
            f" QUALIFY event_id IS NULL OR {first} = 1 ORDER BY occurred_at"
        )
    key = ", ".join(TABLES[table].key)
    last = f"row_number() OVER (PARTITION BY {key} ORDER BY {SEQUENCE} DESC) = 1"
    alive = f" WHERE NOT {DELETED}" if merge.drop_tombstones else ""
    return f"SELECT * FROM (SELECT * FROM {PARQUET} QUALIFY {last}){alive} ORDER BY {key}"


def _of_month(query: str) -> str:
    """The same over the rows of one month: the filter stands below the windows, at the scan."""
    return query.replace(PARQUET, f"{PARQUET} WHERE occurred_at >= ? AND occurred_at < ?", 1)


def _months(inputs: Iterable[FileEntry]) -> list[tuple[str, datetime, datetime]]:
    entries = list(inputs)
    earliest = min(entry.min_time for entry in entries if entry.min_time is not None)
    latest = max(entry.max_time for entry in entries if entry.max_time is not None)
    months = []
    first = datetime(earliest.year, earliest.month, 1)
    while first <= latest:
        after = datetime(first.year + first.month // 12, first.month % 12 + 1, 1)
        months.append((f"{first:%Y-%m}", first, after))
        first = after
    return months


def since(path: str, bound: datetime, scratch: Path, memory_mb: int) -> MergedFile | None:
    """The events of a file from an instant on, as a file in ``scratch``."""
    connection = connect({"threads": "1", "memory_limit": f"{memory_mb}MB"})
    try:
        query = f"SELECT * FROM {PARQUET} WHERE occurred_at >= ?"
        return write_file(connection, query, [[path], bound], scratch / "since.parquet", True)
    finally:
        connection.close()


def write_file(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    params: list[object],
    target: Path,
    is_event: bool,
    month: str = "",
) -> MergedFile | None:
    """The rows of a query as a file of the lake; ``None`` where there are none."""
    metadata = ", ".join(f"'{key}': '{value}'" for key, value in FORMAT_METADATA.items())
    copied = connection.execute(
        f"COPY ({query}) TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd, "
        f"ROW_GROUP_SIZE {ROW_GROUP_ROWS}, KV_METADATA {{{metadata}}})",
        params,
    ).fetchone()
    return _measured(connection, target, month, is_event) if copied and copied[0] else None


def _measured(
    connection: duckdb.DuckDBPyConnection, path: Path, month: str, is_event: bool
) -> MergedFile:
    bounds = None
    if is_event:
        bounds = connection.execute(
            "SELECT min(occurred_at), max(occurred_at) FROM read_parquet(?)", [str(path)]
        ).fetchone()
    earliest, latest = bounds or (None, None)
    rows = pq.read_metadata(path).num_rows
    return MergedFile(path, month, rows, path.stat().st_size, earliest, latest)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
