"""The lake as tables: a DuckDB connection with one view per table of ``manta.schema``.

Each shard is read as of its newest manifest: exactly the files that it names, so a view never sees
half a flush or a file twice. Of state tables the last row of each key holds and deleted ones are
gone. What a shard has committed since its last flush is not in the lake yet. Views have one column
more than the tables: ``shard``. Files stay for a day after their manifest was replaced, so a
connection is good for a day; open a new one to see newer state.

A person who was merged into another has no profile. What they did stays under their own id, and a
copy with a ``merge_id`` stands under the id of whom they live on as: counts over many people leave
copies out (``merge_id IS NULL``), questions about one person have them. ``living`` says whom each
merged id lives on as, however many merges it took.

Nothing here writes; any number of readers may be open while shards work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq

from manta.clock import SystemClock
from manta.rules import meaning
from manta.schema import ALIASES, ATTRIBUTE_PREFIX, SQL_TYPES, TABLES, AttributeType, Table
from manta.store.flush import DELETED, SEQUENCE
from manta.store.hiding import HIDING, UNDONE, VISIBLE
from manta.store.manifest import FileEntry, Manifest, Manifests
from manta.store.objects import ObjectStore, open_objects
from manta.store.objects_s3 import S3Objects
from manta.store.past import turn_back
from manta.store.statements import arrow_schema

CORRECTIONS = "traffic_corrections"
_MERGES_MAX = 16  # in a row; manta.people.aliases makes no longer chain
_SHARD = re.compile(r"/shard=(\d+)/")


def open(
    root: str,
    workspace: str = "default",
    shards: Sequence[int] | None = None,
    as_of: datetime | None = None,
    threads: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """A connection with the views ``events``, ``profiles``, ``consents``, ``ledger``, ….

    ``root`` is the storage root (``file://`` or ``s3://``); ``shards`` limits it to some of them.
    With ``as_of`` (naive UTC) the views of people are what they were then (``manta.store.past``).
    Raises ``StoreUnavailable``, ``Damaged`` (a manifest that cannot be read).
    """
    objects = open_objects(root)
    found = manifests(objects, workspace)
    chosen = [m for shard, m in found.items() if shards is None or shard in shards]
    return of_manifests(objects, chosen, as_of, threads)


def of_manifests(
    objects: ObjectStore,
    chosen: Sequence[Manifest],
    as_of: datetime | None = None,
    threads: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """The same over these very manifests."""
    connection = duckdb.connect(":memory:", config={"threads": threads} if threads else {})
    connection.execute("SET TimeZone = 'UTC'")
    meaning.register(connection)  # what the SQL of a rule calls
    # Events last: their view looks at others.
    filed = {name for manifest in chosen for name, files in manifest.files.items() if files}
    for table in sorted(TABLES.values(), key=lambda table: not table.key):
        files = [file for manifest in chosen for file in manifest.files.get(table.name, ())]
        source = _source(connection, objects, table, files) if files else None
        is_whole = len(files) == len({shard_of(file.path) for file in files})
        view = _view(table, source, filed, is_whole)
        connection.execute(f"CREATE VIEW {table.name} AS {view}")
    connection.execute(f"CREATE VIEW living AS {_living(ALIASES.name in filed)}")
    if as_of is not None:
        turn_back(connection, as_of)
    return connection


def attribute_types(connection: duckdb.DuckDBPyConnection) -> dict[str, AttributeType]:
    """The attributes that people here have, with the types that rules see."""
    kinds = {sql_type: kind for kind, sql_type in SQL_TYPES.items()}
    return {
        name.removeprefix(ATTRIBUTE_PREFIX): kinds[sql_type]
        for name, sql_type, *_ in connection.sql("DESCRIBE profiles").fetchall()
        if name.startswith(ATTRIBUTE_PREFIX)
    }


def shard_of(path: str) -> int:
    """The shard in whose folder a file lies."""
    found = _SHARD.search(path)
    assert found is not None, path
    return int(found.group(1))


def person_page(
    objects: ObjectStore,
    manifest: Manifest,
    table: str,
    people: Sequence[int],
    after: int,
    limit: int,
) -> pa.Table:
    """Events or ledger rows of these people in one shard's files, with the history: the next
    ``limit`` after so many, by time."""
    order = {"events": "occurred_at, event_id", "ledger": "planned_at, message_key"}[table]
    with of_manifests(objects, [manifest], threads=1) as connection:
        return connection.sql(
            f"SELECT * FROM {table} WHERE subscriber_id IN (SELECT unnest(?::BIGINT[]))"
            f" ORDER BY {order} LIMIT ? OFFSET ?",
            params=[[int(id) for id in people], int(limit), int(after)],
        ).to_arrow_table()


def manifests(objects: ObjectStore, workspace: str = "default") -> dict[int, Manifest]:
    """The newest manifest of each shard of a workspace; a shard that never flushed has none."""
    paths = objects.list(f"{workspace}/manifest/")
    numbers = sorted({int(m.group(1)) for path in paths if (m := _SHARD.search(path))})
    clock = SystemClock()
    found = {}
    for number in numbers:
        latest = Manifests(objects, f"{workspace}/manifest/shard={number:03d}", clock).latest()
        if latest is not None:
            found[number] = latest
    return found


def _view(table: Table, source: str | None, filed: set[str], is_whole: bool) -> str:
    """The view's query. An empty relation first fixes names and types of the fixed columns.

    What the lake has nothing of is not looked at: no corrections, nobody hidden, no second file in
    which a key could stand again.
    """
    typed = ", ".join(f"NULL::{sql_type} AS {name}" for name, sql_type in table.columns)
    empty = f"SELECT {typed}, NULL::INTEGER AS shard WHERE false"
    if source is None:
        return empty
    if not table.key:
        rows = f"{empty} UNION ALL BY NAME SELECT * FROM {source}"
        if CORRECTIONS in filed:
            rows = (
                f"SELECT e.* REPLACE (coalesce(c.human, e.human) AS human) FROM ({rows}) e"
                f" LEFT JOIN {CORRECTIONS} c USING (subscriber_id, event_id)"
            )
        return f"SELECT * FROM ({rows}) WHERE {VISIBLE}" if filed & HIDING else rows
    key = ", ".join(table.key)
    last = f"row_number() OVER (PARTITION BY shard, {key} ORDER BY {SEQUENCE} DESC) = 1"
    rows = f"SELECT * FROM {source}" + ("" if is_whole else f" QUALIFY {last}")
    return (
        f"{empty} UNION ALL BY NAME "
        f"SELECT * EXCLUDE ({SEQUENCE}, {DELETED}) FROM ({rows}) WHERE NOT {DELETED}"
    )


def _living(merged: bool) -> str:
    """Whom each merged id lives on as, through all merges that stand: ``from_id``, ``to_id``."""
    if not merged:
        return "SELECT NULL::BIGINT AS from_id, NULL::BIGINT AS to_id WHERE false"
    standing = f"SELECT DISTINCT from_id, to_id FROM aliases WHERE state <> '{UNDONE}'"
    return (
        f"WITH RECURSIVE step AS ({standing}), chain AS (SELECT *, 1 AS merges FROM step"
        " UNION ALL SELECT c.from_id, s.to_id, c.merges + 1 FROM chain c"
        f" JOIN step s ON s.from_id = c.to_id WHERE c.merges <= {_MERGES_MAX})"
        " SELECT from_id, arg_max(to_id, merges) AS to_id FROM chain GROUP BY from_id"
    )


def _source(
    connection: duckdb.DuckDBPyConnection,
    objects: ObjectStore,
    table: Table,
    files: Sequence[FileEntry],
) -> str:
    if isinstance(objects, S3Objects):
        name = f"_files_of_{table.name}"
        connection.register(name, _dataset(objects, table, files))
        return name
    paths = [objects.local_path(file.path) or "" for file in files]
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return (
        f"read_parquet([{listed}], union_by_name = true, "
        "hive_partitioning = true, hive_types = {'shard': INTEGER})"
    )


def _dataset(objects: S3Objects, table: Table, files: Sequence[FileEntry]) -> ds.Dataset:
    """The files by Arrow's own S3 client: DuckDB's needs an extension from the network."""
    settings = objects.duckdb_settings()
    s3 = fs.S3FileSystem(
        region=settings["REGION"],
        endpoint_override=settings.get("ENDPOINT"),
        scheme="http" if settings.get("USE_SSL") == "false" else "https",
    )
    paths = [_bucket_path(objects.url(file.path)) for file in files]
    schema = arrow_schema(table)
    if table.key:
        schema = pa.schema([*schema, (SEQUENCE, pa.int64()), (DELETED, pa.bool_())])
    if table.has_attributes:
        stored = [pq.read_schema(path, filesystem=s3) for path in paths]
        schema = pa.unify_schemas([schema, *(each.remove_metadata() for each in stored)])
    shard = pa.schema([("shard", pa.int32())])
    return ds.dataset(
        paths,
        schema=pa.unify_schemas([schema, shard]),
        filesystem=s3,
        format="parquet",
        partitioning=ds.partitioning(shard, flavor="hive"),
    )


def _bucket_path(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.netloc}{parts.path}"
