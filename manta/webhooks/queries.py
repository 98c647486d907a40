"""Reads of the outbox: the log of deliveries, counts, and since when an endpoint fails.

Every function takes (database, context, arguments) and answers plain values; ``QUERIES`` names
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from manta.command import Context, Database
from manta.webhooks.hooks import due
from manta.webhooks.retries import State

LOG_ROWS_MAX = 1_000
Arguments = Mapping[str, Any]
_COLUMNS = (
    "delivery_id",
    "endpoint_id",
    "subscriber_id",
    "type",
    "body",
    "state",
    "attempts",
    "due_at",
    "status",
    "answer",
    "created_at",
    "changed_at",
)


def deliveries(database: Database, context: Context, arguments: Arguments) -> list[dict[str, Any]]:
    """Of ``endpoint_id``, the newest first: in ``state`` and of ``type`` if given, older than
    ``before``, which is (created_at, delivery_id); ``limit``."""
    sql = f"SELECT {', '.join(_COLUMNS)} FROM outbox WHERE endpoint_id = ?"
    params: list[Any] = [arguments["endpoint_id"]]
    for name in ("state", "type", "delivery_id"):
        if arguments.get(name) is not None:
            sql += f" AND {name} = ?"
            params.append(arguments[name])
    if arguments.get("before"):
        sql += " AND (created_at, delivery_id) < (?, ?)"
        params += arguments["before"]
    sql += " ORDER BY created_at DESC, delivery_id DESC LIMIT ?"
    params.append(min(arguments.get("limit", LOG_ROWS_MAX), LOG_ROWS_MAX))
    return [dict(zip(_COLUMNS, row, strict=True)) for row in database.rows(sql, params)]


def delivery_counts(
    database: Database, context: Context, arguments: Arguments
) -> list[tuple[int, str, int, datetime | None]]:
    """(endpoint, state, deliveries, the oldest one's ``created_at``)."""
    found = database.rows(
        "SELECT endpoint_id, state, count(*), min(created_at) FROM outbox GROUP BY ALL ORDER BY ALL"
    )
    return [(endpoint_id, state, count, oldest) for endpoint_id, state, count, oldest in found]


def last_delivered(database: Database, context: Context, arguments: Arguments) -> datetime | None:
    """When a delivery to ``endpoint_id`` last succeeded, as far back as the log goes."""
    ((at,),) = database.rows(
        "SELECT max(changed_at) FROM outbox WHERE endpoint_id = ? AND state = ?",
        [arguments["endpoint_id"], str(State.DELIVERED)],
    )
    return at  # type: ignore[no-any-return]


def failing_since(database: Database, context: Context, arguments: Arguments) -> datetime | None:
    """The ``created_at`` of the oldest delivery to ``endpoint_id`` after ``since`` that was tried
    and not delivered."""
    ((at,),) = database.rows(
        "SELECT min(created_at) FROM outbox WHERE endpoint_id = ? AND state <> ? AND attempts > 0"
        " AND created_at >= coalesce(?::TIMESTAMP, '-infinity'::TIMESTAMP)",
        [arguments["endpoint_id"], str(State.DELIVERED), arguments.get("since")],
    )
    return at  # type: ignore[no-any-return]


QUERIES = {
    "deliveries": deliveries,
    "delivery_counts": delivery_counts,
    "deliveries_due": due,
    "last_delivered": last_delivered,
    "failing_since": failing_since,
}
