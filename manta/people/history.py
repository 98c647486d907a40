"""History: what the people commands write into the event table beside the state they change.

State says what is; these events say what was, since when and by whom: back-fills, point-in-time
features and undo read nothing else. Properties are built in SQL over whole batches and arrive here
as a column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from manta.command import Change, Op
from manta.schema import TABLES

INSTANT = pa.timestamp("us")
ARROW_OF_SQL = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
    "TIMESTAMP": INSTANT,
    "VARCHAR[]": pa.list_(pa.string()),
    "INTEGER[]": pa.list_(pa.int32()),
}


def arrow_type(table: str, column: str) -> pa.DataType:
    """The Arrow type of a fixed column of ``manta.schema``."""
    return ARROW_OF_SQL[dict(TABLES[table].columns)[column]]


def same(value: Any, count: int, kind: pa.DataType) -> pa.Array:
    """A column that repeats one value."""
    return pa.repeat(pa.scalar(value, kind), count)


def rows_of(table: str, count: int, **columns: Any) -> pa.Table:
    """Rows of a table: each column is an Arrow array, or one value for all rows."""
    arrays = {}
    for name, value in columns.items():
        kind = arrow_type(table, name)
        if isinstance(value, pa.ChunkedArray):
            value = value.combine_chunks()
        if isinstance(value, pa.Array):
            arrays[name] = value if value.type == kind else value.cast(kind)
        else:
            arrays[name] = same(value, count, kind)
    return pa.table(arrays)


def upserted(table: str, count: int, **columns: Any) -> Change:
    return Change(table, Op.UPSERT, rows_of(table, count, **columns))


def random_int64(count: int, random: Random) -> pa.Array:
    """Fresh event ids of events that nobody else can send twice."""
    return pa.array(np.frombuffer(random.randbytes(8 * count), np.int64))


def recorded(
    kind: str,
    people: pa.Array,
    properties: pa.Array | Mapping[str, Any],
    now: datetime,
    random: Random,
    **columns: Any,
) -> Change:
    """One event of ``kind`` for each of the people; properties as a column of JSON, or one for
    all."""
    shared = not isinstance(properties, pa.Array | pa.ChunkedArray)
    count = len(people)
    rows = rows_of(
        "events",
        count,
        subscriber_id=people,
        occurred_at=now,
        type=kind,
        event_id=random_int64(count, random),
        properties=compact_json(properties) if shared else properties,
        **columns,
    )
    return Change("events", Op.INSERT, rows)


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
