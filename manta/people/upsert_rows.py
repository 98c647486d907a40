"""The rows of an upsert made ready: types checked, names in their compared form, repeats merged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manta.command import Database
from manta.errors import InvalidRequest
from manta.people.identities import ANONYMOUS_ID, EMAIL, EXTERNAL_ID, PHONE, compared_each
from manta.schema import ATTRIBUTE_NAME, ATTRIBUTE_PREFIX

ROWS_MAX = 50_000  # of one command: bounds how long the writer is held (about 10 ms a thousand)
NAMING = (EMAIL, EXTERNAL_ID, ANONYMOUS_ID)  # the first given names the row's person
NAME_COLUMNS = ("subscriber_id", EMAIL, EXTERNAL_ID, PHONE, ANONYMOUS_ID)
PLAIN_COLUMNS = ("time_zone", "locale")
_ADDRESS = r"^[^\x00-\x20\x7f@]+@[a-z0-9.\-]+$"


def checked(rows: pa.Table, database: Database) -> tuple[dict[str, str], pa.Table]:
    """The value columns, each with the SQL of what is stored, and the rows in profile types.

    An attribute that the profile does not have yet is stored as NULL; writing it adds the column.
    """
    if rows.num_rows > ROWS_MAX:
        raise InvalidRequest(
            f"{rows.num_rows} rows in one batch", path="rows", expected=f"at most {ROWS_MAX}"
        )
    profile = database.table("SELECT * FROM profiles LIMIT 0").schema
    columns: dict[str, pa.Array] = {}
    fields: dict[str, str] = {}
    for name in rows.column_names:
        known = name in profile.names
        if name in NAME_COLUMNS or name in PLAIN_COLUMNS or (known and _is_attribute(name)):
            kind = profile.field(name).type if known else pa.string()
        elif _is_attribute(name):
            kind = rows.schema.field(name).type
            if pa.types.is_null(kind):
                continue  # nothing but nulls in an attribute that nobody has
        else:
            raise InvalidRequest(
                f"people have no column {name!r:.80}",
                path=f"rows.{name:.80}",
                expected="an attribute as attr_<name>, or one of "
                + ", ".join((*NAME_COLUMNS, *PLAIN_COLUMNS)),
            )
        columns[name] = _cast(rows[name], name, kind)
        if name not in NAME_COLUMNS:
            fields[name] = f"p.{name}" if known else "NULL"
    for name in ("subscriber_id", EMAIL, EXTERNAL_ID):
        missing = pa.nulls(rows.num_rows, pa.int64() if name == "subscriber_id" else pa.string())
        columns.setdefault(name, missing)
    _check_names(columns)
    return fields, pa.table(columns)


def _is_attribute(name: str) -> bool:
    return name.startswith(ATTRIBUTE_PREFIX) and bool(
        ATTRIBUTE_NAME.fullmatch(name.removeprefix(ATTRIBUTE_PREFIX))
    )


def _cast(column: pa.ChunkedArray, name: str, kind: pa.DataType) -> pa.Array:
    try:
        array = column.cast(kind).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidRequest(
            f"column {name} does not fit: {error!s:.200}", path=f"rows.{name}", expected=str(kind)
        ) from None
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _check_names(columns: dict[str, pa.Array]) -> None:
    if pc.any(pc.invert(pc.match_substring_regex(columns[EMAIL], _ADDRESS))).as_py():
        raise InvalidRequest(
            "a row has an address that was not normalised", path="rows.email", expected="addresses"
        )
    named = columns["subscriber_id"].is_valid()
    for kind in NAMING:
        if kind in columns:
            named = pc.or_(named, columns[kind].is_valid())
    if not pc.all(named, min_count=0).as_py():
        expected = " or ".join(("subscriber_id", *NAMING))
        raise InvalidRequest("a row names nobody", path="rows", expected=expected)


def named(rows: pa.Table) -> pa.Table:
    """With ``n`` (place in the batch), ``kind`` and ``value`` (the name in its compared form)."""
    by_id = rows["subscriber_id"].is_valid()
    by_email = pc.and_not(rows[EMAIL].is_valid(), by_id)
    other_kind, other = EXTERNAL_ID, _compared(rows, EXTERNAL_ID)
    if ANONYMOUS_ID in rows.column_names:
        by_number = other.is_valid()
        other_kind = pc.if_else(by_number, EXTERNAL_ID, ANONYMOUS_ID)
        other = pc.if_else(by_number, other, _compared(rows, ANONYMOUS_ID))
    value = pc.if_else(by_email, _compared(rows, EMAIL), other)
    kind = pc.if_else(by_email, EMAIL, other_kind)
    nothing = pa.scalar(None, pa.string())
    return (
        rows.append_column("n", pa.array(np.arange(rows.num_rows)))
        .append_column("kind", pc.if_else(by_id, nothing, kind))
        .append_column("value", pc.if_else(by_id, nothing, value))
    )


def _compared(rows: pa.Table, kind: str) -> pa.Array:
    return compared_each(kind, rows[kind].combine_chunks())


def merged(rows: pa.Table, fields: dict[str, str], database: Database) -> tuple[pa.Table, pa.Array]:
    """One row for each name, in order of first appearance; and for each row given its group."""
    ids = pc.cast(rows["subscriber_id"], pa.string())
    names = pc.coalesce(
        ids, pc.binary_join_element_wise(rows["kind"], rows["value"], "\x00")
    ).combine_chunks()
    groups = names.dictionary_encode()
    if len(groups.dictionary) == rows.num_rows:
        return rows, groups.indices
    further = [k for k in (EXTERNAL_ID, PHONE, ANONYMOUS_ID) if k in rows.column_names]
    last = ", ".join(f"arg_max({name}, n) AS {name}" for name in [*further, *fields])
    merged = database.table(
        "SELECT min(n) AS n, any_value(subscriber_id) AS subscriber_id, arg_min(email, n) AS email,"
        f" any_value(kind) AS kind, any_value(value) AS value, {last}"
        " FROM given GROUP BY name ORDER BY n",
        given=rows.append_column("name", names),
    )
    return merged, groups.indices


def one_each(known: pa.Table, fields: dict[str, str], database: Database) -> pa.Table:
    """One row for each person: two names in a batch may be one person's."""
    if pc.count_distinct(known["person"]).as_py() == known.num_rows:
        return known
    last = "".join(f", arg_max({name}, n) AS {name}" for name in fields)
    return database.table(
        f"SELECT min(n) AS n, person{last} FROM known GROUP BY person ORDER BY n", known=known
    )
