"""Changed rows as DuckDB writes them: their checks, what can be written together, the statements.

Pure: nothing here touches a database. All names in a statement are the schema's own; values never
stand in its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Change, Op
from manta.errors import InvalidRequest
from manta.schema import HISTORY_EVENTS, TABLES, Table

ARROW_TYPES: dict[str, pa.DataType] = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "USMALLINT": pa.uint16(),
    "UTINYINT": pa.uint8(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
    "TIMESTAMP": pa.timestamp("us"),
    "VARCHAR[]": pa.list_(pa.string()),
    "INTEGER[]": pa.list_(pa.int32()),
}


def arrow_schema(table: Table) -> pa.Schema:
    """The fixed columns of a table with their Arrow types."""
    return pa.schema([(name, ARROW_TYPES[sql_type]) for name, sql_type in table.columns])


def hot_events(rows: pa.Table, since: datetime | None = None) -> pa.Table:
    """Events without the history of attributes, consents and memberships (see the schema)."""
    kinds = pa.array(HISTORY_EVENTS, pa.string())
    is_cold = pc.is_in(rows.column("type"), value_set=kinds)
    if since is not None:
        is_late = pc.less(rows.column("occurred_at"), pa.scalar(since, pa.timestamp("us")))
        is_cold = pc.or_(is_cold, pc.fill_null(is_late, False))
    return rows.filter(pc.invert(is_cold)) if pc.any(is_cold).as_py() else rows


def correct(source: str) -> str:
    """The statement that brings corrections (subscriber_id, event_id, human) into the events."""
    return (
        f"UPDATE events SET human = c.human FROM {source} c"
        " WHERE events.subscriber_id = c.subscriber_id AND events.event_id = c.event_id"
    )


# A column of mostly nulls would be run-length encoded, and to fetch the rows of a few people by the
# index, half of what it costs would go into finding the place in the runs.
_COMPRESSIONS = {("events", "amount"): "alp"}


def create(table: Table) -> str:
    columns = [f"{name} {sql_type}{_compression(table, name)}" for name, sql_type in table.columns]
    if table.key:
        columns.append(f"PRIMARY KEY ({', '.join(table.key)})")
    return f"CREATE TABLE {table.name} ({', '.join(columns)})"


def _compression(table: Table, column: str) -> str:
    chosen = _COMPRESSIONS.get((table.name, column))
    return "" if chosen is None else f" USING COMPRESSION {chosen}"


def write(name: str, op: Op, columns: Sequence[str]) -> str:
    """The statement that writes ``{rows}`` with these columns. All names are the schema's own."""
    key, listed = TABLES[name].key, ", ".join(columns)
    insert = f"INSERT INTO {name} ({listed}) SELECT {listed} FROM {{rows}}"
    if op is Op.INSERT:
        return insert
    if op is Op.DELETE:
        return f"DELETE FROM {name} USING {{rows}} _rows WHERE {_same_key(name)}"
    sets = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
    action = f"UPDATE SET {sets}" if sets else "NOTHING"
    return f"{insert} ON CONFLICT ({', '.join(key)}) DO {action}"


def update(name: str, columns: Sequence[str]) -> str:
    """The statement that updates the rows that are there already."""
    key = TABLES[name].key
    sets = ", ".join(f"{column} = _rows.{column}" for column in columns if column not in key)
    return f"UPDATE {name} SET {sets} FROM {{rows}} _rows WHERE {_same_key(name)}"


def _same_key(name: str) -> str:
    return " AND ".join(f"{name}.{column} = _rows.{column}" for column in TABLES[name].key)


def check_key(table: Table, rows: pa.Table) -> None:
    missing = [column for column in table.key if column not in rows.column_names]
    if missing:
        raise InvalidRequest(
            f"rows of {table.name} lack {', '.join(missing)}",
            path=table.name,
            expected=f"the key: {', '.join(table.key)}",
        )
    for column in table.key:
        if rows.column(column).null_count:
            raise InvalidRequest(f"{table.name}.{column} is empty", path=f"{table.name}.{column}")
    if rows.num_rows > 1 and _last_of_each_key(rows, table.key).num_rows != rows.num_rows:
        raise InvalidRequest(
            f"a change of {table.name} names one key twice",
            path=table.name,
            expected=f"each ({', '.join(table.key)}) once",
        )


def _last_of_each_key(rows: pa.Table, key: tuple[str, ...]) -> pa.Table:
    if pc.count_distinct(rows.column(key[0])).as_py() == rows.num_rows:
        return rows
    numbered = rows.select(list(key)).append_column("_n", pa.array(np.arange(rows.num_rows)))
    last = numbered.group_by(list(key), use_threads=False).aggregate([("_n", "max")])["_n_max"]
    return rows if len(last) == rows.num_rows else rows.take(pa.array(np.sort(last.to_numpy())))


def merge(changes: list[Change]) -> list[Change]:
    """Neighbours that one statement can write, joined: same operation and same columns.

    Of upserts with the same columns a key's last row overwrites all earlier ones.
    """
    merged: list[Change] = []
    run: list[Change] = []
    for change in changes:
        if run and (change.op is not run[0].op or change.rows.schema != run[0].rows.schema):
            merged.append(_join(run))
            run = []
        run.append(change)
    merged.append(_join(run))
    return merged


def _join(run: list[Change]) -> Change:
    if len(run) == 1:
        return run[0]
    rows = pa.concat_tables([change.rows for change in run])
    key = TABLES[run[0].table].key
    return Change(run[0].table, run[0].op, _last_of_each_key(rows, key) if key else rows)


def attribute_type(arrow_type: pa.DataType, path: str) -> str | None:
    """The DuckDB type of an attribute that comes as this Arrow type; ``None`` for all null."""
    types = pa.types
    if types.is_null(arrow_type):
        return None
    if types.is_dictionary(arrow_type):
        return attribute_type(arrow_type.value_type, path)
    if types.is_boolean(arrow_type):
        return "BOOLEAN"
    if (
        types.is_integer(arrow_type)
        or types.is_floating(arrow_type)
        or types.is_decimal(arrow_type)
    ):
        return "DOUBLE"
    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return "VARCHAR"
    if types.is_string_view(arrow_type):
        return "VARCHAR"
    if types.is_timestamp(arrow_type) or types.is_date(arrow_type):
        return "TIMESTAMP"
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        inner = arrow_type.value_type
        if types.is_null(inner) or attribute_type(inner, path) == "VARCHAR":
            return "VARCHAR[]"
    raise InvalidRequest(
        f"{path} holds {arrow_type}, which no attribute can be",
        path=path,
        expected="text, number, boolean, date or a list of texts",
    )
