"""Reads of events: what a person did and was sent, as far back as memory goes.

Changes of attributes, consents and memberships are history: they lie in the lake alone
(``manta.store.lake``), as do events older than the retention window.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from manta.command import Context, Database
from manta.errors import InvalidRequest

PAGE_ROWS_MAX = 1_000


def person_events(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The events of ``subscriber_id``, the latest first: up to ``limit`` that come ``before`` the
    ``(occurred_at, event_id)`` of an earlier page's end; only of ``types`` if given.

    Answers ``events`` and ``next``: what to give as ``before`` for the next page, or ``None``.
    """
    limit = int(arguments.get("limit") or 100)
    if not 0 < limit <= PAGE_ROWS_MAX:
        raise InvalidRequest(
            f"a page of {limit} events", path="limit", expected=f"1 to {PAGE_ROWS_MAX}"
        )
    before, before_id = arguments.get("before") or (datetime.max, 0)
    sql = (
        "SELECT subscriber_id, occurred_at, type, event_id, campaign_id, message_key, item, amount,"
        " properties FROM events WHERE subscriber_id = ? AND (occurred_at, event_id) < (?, ?)"
    )
    params: list[Any] = [arguments["subscriber_id"], before, before_id]
    if arguments.get("types"):
        sql += " AND list_contains(?::VARCHAR[], type)"
        params.append(list(arguments["types"]))
    sql += " ORDER BY occurred_at DESC, event_id DESC LIMIT ?"
    events = database.table(sql, [*params, limit + 1]).to_pylist()
    more = len(events) > limit
    events = events[:limit]
    last = events[-1] if more else None
    return {"events": events, "next": last and (last["occurred_at"], last["event_id"])}


def last_events(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """By type of event of ``subscriber_id``: ``type``, ``count``, ``first_at``, ``last_at``."""
    rows: list[dict[str, Any]] = database.table(
        "SELECT type, count(*) AS count, min(occurred_at) AS first_at, max(occurred_at) AS last_at"
        " FROM events WHERE subscriber_id = ? GROUP BY type ORDER BY last_at DESC, type",
        [arguments["subscriber_id"]],
    ).to_pylist()
    return rows


QUERIES = {"last_events": last_events, "person_events": person_events}
