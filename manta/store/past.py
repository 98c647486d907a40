"""The lake as it was: views of state at an instant, worked back from the history in the events.

Every change of an attribute, consent, suppression and membership is an event with the old value.
So the value at an instant is the ``old`` of the first change after it, and where none followed, the
present one. What is not in the history is as it is now: who is merged with whom, what has been
found out about machine traffic, and messages. Predictions count from when they were last written.
Until when a consent or suppression was to hold is not in the history: one that was changed since
counts as without an end. People who were erased never were.
"""

from __future__ import annotations

from datetime import datetime

import duckdb

from manta.schema import ATTRIBUTE_PREFIX, PROFILES

_NOW = "_now_"
# What `json_transform` makes a value of a column's type from.
_SHAPES = {
    "VARCHAR": '"VARCHAR"',
    "DOUBLE": '"DOUBLE"',
    "BOOLEAN": '"BOOLEAN"',
    "TIMESTAMP": '"TIMESTAMP"',
    "VARCHAR[]": '["VARCHAR"]',
}


def turn_back(connection: duckdb.DuckDBPyConnection, instant: datetime) -> None:
    """Make the views of ``manta.store.lake`` those of the instant (naive UTC), it included."""
    at = f"TIMESTAMP '{instant.isoformat(sep=' ', timespec='microseconds')}'"
    profiles = connection.sql("DESCRIBE profiles").fetchall()
    columns = {name: sql_type for name, sql_type, *_ in profiles}
    queries = {
        "events": f"SELECT * FROM {_NOW}events WHERE occurred_at <= {at}",
        "profiles": _profiles(columns, at),
        "consents": _keyed(
            "consents",
            ("channel", "topic"),
            "status",
            "consent_changed",
            at,
        ),
        "suppressions": _suppressions(at),
        "memberships": _memberships(at),
        "attribute_times": _attribute_times(at),
        "predictions": f"SELECT * FROM {_NOW}predictions WHERE changed_at <= {at}",
    }
    for name in queries:
        connection.execute(f"ALTER VIEW {name} RENAME TO {_NOW}{name}")
    for name, query in queries.items():
        connection.execute(f"CREATE VIEW {name} AS {query}")


def _changes(kind: str, at: str) -> str:
    """The history of one kind after the instant."""
    return (
        f"(SELECT subscriber_id, occurred_at, event_id, properties FROM {_NOW}events"
        f" WHERE type = '{kind}' AND occurred_at > {at})"
    )


# The first change after the instant; of two at one instant the one that the history names first.
def _first(value: str, where: str = "true") -> str:
    return f"arg_min_null({value}, (occurred_at, event_id)) FILTER (WHERE {where})"


def _profiles(columns: dict[str, str], at: str) -> str:
    fixed = {"subscriber_id", "created_at", "updated_at", "shard"}
    movable = {
        name: sql_type
        for name, sql_type in columns.items()
        if name not in fixed
        and (name in dict(PROFILES.columns) or name.startswith(ATTRIBUTE_PREFIX))
    }
    firsts, replaced = [], []
    for n, (name, sql_type) in enumerate(movable.items()):
        old, new = (f"json_extract(properties, '$.{side}.\"{name}\"')" for side in ("old", "new"))
        moved = f"({old} IS NOT NULL OR {new} IS NOT NULL)"
        firsts.append(f"{_first(old, moved)} AS v{n}, bool_or({moved}) AS m{n}")
        value = f"json_transform(b.v{n}, '{_SHAPES[sql_type]}')"
        replaced.append(f'CASE WHEN b.m{n} THEN {value} ELSE p."{name}" END AS "{name}"')
    return (
        f"SELECT p.* REPLACE ({', '.join(replaced)}) FROM {_NOW}profiles p LEFT JOIN"
        f" (SELECT subscriber_id, {', '.join(firsts)} FROM {_changes('profile_changed', at)}"
        f" GROUP BY subscriber_id) b USING (subscriber_id)"
        f" WHERE p.created_at IS NULL OR p.created_at <= {at}"
    )


def _keyed(table: str, key: tuple[str, ...], value: str, kind: str, at: str) -> str:
    """State by person and key with one value that has a history."""
    keys = ", ".join(f"json_extract_string(properties, '$.{name}') AS {name}" for name in key)
    using = ", ".join(("subscriber_id", *key))
    first = f"SELECT {using}, old AS {value} FROM ({_old(keys, using, kind, at)})"
    return (
        f"SELECT * FROM {_NOW}{table} ANTI JOIN ({_old(keys, using, kind, at)}) USING ({using})"
        f" UNION ALL BY NAME SELECT * FROM ({first}) WHERE {value} IS NOT NULL"
    )


def _old(keys: str, using: str, kind: str, at: str) -> str:
    changes = f"SELECT *, {keys} FROM {_changes(kind, at)}"
    old = "json_extract_string(properties, '$.old')"
    return f"SELECT {using}, {_first(old)} AS old FROM ({changes}) GROUP BY {using}"


def _suppressions(at: str) -> str:
    keys = ", ".join(
        f"json_extract_string(properties, '$.{name}') AS {name}" for name in ("channel", "address")
    )
    old = _old(keys, "channel, address", "suppression_changed", at)
    return (
        f"SELECT * FROM {_NOW}suppressions ANTI JOIN ({old}) USING (channel, address)"
        f" WHERE created_at <= {at} UNION ALL BY NAME"
        f" SELECT channel, address, old AS reason FROM ({old}) WHERE old IS NOT NULL"
    )


def _memberships(at: str) -> str:
    segment = "CAST(json_extract(properties, '$.segment') AS INTEGER) AS segment"
    was = "NOT CAST(json_extract(properties, '$.member') AS BOOLEAN)"
    before = (
        f"SELECT subscriber_id, segment, {_first(was)} AS was FROM (SELECT *, {segment}"
        f" FROM {_changes('membership_changed', at)}) GROUP BY subscriber_id, segment"
    )
    return (
        "SELECT subscriber_id, list_sort(list(segment)) AS segments FROM"
        f" (SELECT subscriber_id, segment FROM (SELECT subscriber_id, unnest(segments) AS segment"
        f" FROM {_NOW}memberships) ANTI JOIN ({before}) USING (subscriber_id, segment)"
        f" UNION ALL SELECT subscriber_id, segment FROM ({before}) WHERE was)"
        " GROUP BY subscriber_id"
    )


def _attribute_times(at: str) -> str:
    """What has not changed since is as it stands: a merge brings values with their own times, and
    its history says only when it brought them. The rest is the last change until then."""
    name = "unnest(list_distinct(list_concat(json_keys(properties, '$.old'), json_keys(properties,"
    name += " '$.new'))))"
    changed = (
        f"SELECT subscriber_id, occurred_at, {name} AS name FROM {_NOW}events"
        f" WHERE type = 'profile_changed' AND occurred_at <= {at}"
    )
    stands = (
        f"SELECT subscriber_id, name, changed_at FROM {_NOW}attribute_times"
        f" WHERE changed_at <= {at}"
    )
    before = (
        f"SELECT subscriber_id, regexp_replace(name, '^{ATTRIBUTE_PREFIX}', '') AS name,"
        f" max(occurred_at) AS changed_at FROM ({changed}) GROUP BY ALL"
    )
    return f"{stands} UNION ALL (FROM ({before}) ANTI JOIN ({stands}) USING (subscriber_id, name))"
