"""Filling the database and the key memory from the files of a manifest.

Files are read where they lie when the store is local, else fetched into a scratch folder first.
A file that is gone, torn or of another format is ``Damaged`` and named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from manta.errors import Damaged, IncompatibleFormat
from manta.schema import EVENTS, RETENTION, TABLES
from manta.store.database import ShardDatabase
from manta.store.flush import DELETED, FORMAT_VERSION, HOT, KEYS
from manta.store.keys import KeyMemory
from manta.store.manifest import FileEntry, Manifest
from manta.store.objects import ObjectStore
from manta.store.retention import Bounds, bounds, is_old

_FETCHES_MAX = 8
_PORTION_ROWS = 500_000  # uncompressed they are 40 MB


def load_files(
    objects: ObjectStore, manifest: Manifest, database: ShardDatabase, keys: KeyMemory
) -> None:
    """State as of ``manifest.journal_sequence``, of events and ledger what memory keeps."""
    since: Bounds = {}
    # The bounds of memory come first: they say what of the others is to be read.
    for table in sorted(manifest.files, key=lambda name: name != RETENTION.name):
        files = list(manifest.files[table])
        where, params = f"NOT {DELETED}", []
        if table == EVENTS.name:
            where = "TRUE"
            files = [file for file in files if file.kind == HOT and not _is_past(file, since)]
        if table in since:
            where = f"{where} AND NOT coalesce({is_old(table)}, FALSE)"
            params = [since[table]]
        if files:
            with local_files(objects, files) as paths:
                if table == KEYS:
                    _load_keys(paths, keys)
                elif table in TABLES:
                    for some in _portions(table, files, paths):
                        _load_table(database, table, some, where, params)
        if table == RETENTION.name:
            since = bounds(database)
    database.events_since = since.get(EVENTS.name)


def _portions(
    table: str, files: Sequence[FileEntry], paths: Sequence[str]
) -> Iterator[Sequence[str]]:
    """What is loaded and compressed at once: of a state table all, of events a little."""
    if TABLES[table].key:
        yield paths
        return
    rows, portion = 0, []
    for file, path in zip(files, paths, strict=True):
        rows += file.rows
        portion.append(path)
        if rows >= _PORTION_ROWS:
            yield portion
            rows, portion = 0, []
    if portion:
        yield portion


def _is_past(file: FileEntry, since: Bounds) -> bool:
    bound = since.get(EVENTS.name)
    return bound is not None and file.max_time is not None and file.max_time < bound


@contextmanager
def local_files(objects: ObjectStore, files: Sequence[FileEntry]) -> Iterator[list[str]]:
    """The files as local paths for the time of the block, checked for their format."""
    with tempfile.TemporaryDirectory(prefix="manta-") as scratch:

        def find(numbered: tuple[int, FileEntry]) -> str:
            index, file = numbered
            path = objects.local_path(file.path)
            if path is None:
                path = str(Path(scratch) / f"{index:05d}.parquet")
                objects.fetch(file.path, path)
            _check(file, path)
            return path

        with ThreadPoolExecutor(_FETCHES_MAX) as pool:
            yield list(pool.map(find, enumerate(files)))


def _check(file: FileEntry, path: str) -> None:
    if not Path(path).exists():
        raise Damaged(f"lake file {file.path} is missing", object=file.path)
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise Damaged(
            f"lake file {file.path} cannot be read: {str(error)[:200]}", object=file.path
        ) from error
    version = metadata.get(b"manta.format", b"").decode()
    if version != str(FORMAT_VERSION):
        raise IncompatibleFormat(
            f"lake file {file.path} has format {version or 'none'}; "
            f"this release reads {FORMAT_VERSION}",
            object=file.path,
        )


def _load_table(
    database: ShardDatabase,
    table: str,
    paths: Sequence[str],
    where: str,
    params: Sequence[datetime],
) -> None:
    try:
        database.load_files(table, paths, where, params)
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.ConstraintException) as error:
        raise Damaged(
            f"the files of {table} cannot be loaded: {str(error)[:300]}", object=paths[0]
        ) from error


def _load_keys(paths: Sequence[str], keys: KeyMemory) -> None:
    for path in paths:
        rows = pq.read_table(path)
        for day in rows.column("day").unique():
            of_day = rows.filter(pa.compute.equal(rows.column("day"), day))
            keys.add_array(of_day.column("hash").to_numpy(), day.as_py())
