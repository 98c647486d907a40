"""The lake as tables: a DuckDB connection with one view per table of ``manta.schema``.

Each shard is read as of its newest manifest: exactly the files that it names, so a view never sees
half a flush or a file twice. Of state tables the last row of each key holds and deleted ones are
gone. What a shard has committed since its last flush is not in the lake yet. Views have one column
more than the tables: ``shard``. Files stay for a day after their manifest was replaced, so a
connection is good for a day; open a new one to see newer state.

Nothing here writes; any number of readers may be open while shards work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq

from manta.clock import SystemClock
from manta.rules import meaning
from manta.schema import TABLES, Table
from manta.store.flush import DELETED, SEQUENCE
from manta.store.hiding import VISIBLE
from manta.store.manifest import FileEntry, Manifest, Manifests
from manta.store.objects import ObjectStore, open_objects
from manta.store.objects_s3 import S3Objects
from manta.store.statements import arrow_schema

_SHARD = re.compile(r"/shard=(\d+)/")


def open(
    root: str, workspace: str = "default", shards: Sequence[int] | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the views ``events``, ``profiles``, ``consents``, ``ledger``, ….

    ``root`` is the storage root (``file://`` or ``s3://``); ``shards`` limits it to some of them.
    Raises ``StoreUnavailable``, ``Damaged`` (a manifest that cannot be read).
    """
    objects = open_objects(root)
    found = manifests(objects, workspace)
    chosen = [m for shard, m in found.items() if shards is None or shard in shards]
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    meaning.register(connection)  # what the SQL of a rule calls
    # Events last: their view looks at others.
    for table in sorted(TABLES.values(), key=lambda table: not table.key):
        files = [file for manifest in chosen for file in manifest.files.get(table.name, ())]
        source = _source(connection, objects, table, files) if files else None
        connection.execute(f"CREATE VIEW {table.name} AS {_view(table, source)}")
    return connection


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


def _view(table: Table, source: str | None) -> str:
    """The view's query. An empty relation first fixes names and types of the fixed columns."""
    typed = ", ".join(f"NULL::{sql_type} AS {name}" for name, sql_type in table.columns)
    empty = f"SELECT {typed}, NULL::INTEGER AS shard WHERE false"
    if source is None:
        return empty
    if not table.key:
        return (
            f"SELECT e.* REPLACE (coalesce(c.human, e.human) AS human) FROM"
            f" ({empty} UNION ALL BY NAME SELECT * FROM {source}) e"
            " LEFT JOIN traffic_corrections c USING (subscriber_id, event_id)"
            f" WHERE {VISIBLE}"
        )
    key = ", ".join(table.key)
    last = f"row_number() OVER (PARTITION BY shard, {key} ORDER BY {SEQUENCE} DESC) = 1"
    rows = f"SELECT * FROM {source} QUALIFY {last}"
    return (
        f"{empty} UNION ALL BY NAME "
        f"SELECT * EXCLUDE ({SEQUENCE}, {DELETED}) FROM ({rows}) WHERE NOT {DELETED}"
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
