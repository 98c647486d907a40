"""Reads of segments: how many are in one, who, how two overlap, how one grew, and whether it holds.

Each shard answers for its own people; whoever asks adds up.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from manta.clock import as_text
from manta.command import Context, Database
from manta.errors import InvalidRequest, NotFound
from manta.people.memberships import members_of
from manta.segments.index import read_index
from manta.segments.whole import moves

PAGE_MAX = 1_000
OVERLAP_MAX = 20  # segments at once
DAYS_MAX = 1_100


def membership(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """``segment_id`` → ``members`` now, and how many ``entered`` and ``left`` today (UTC)."""
    id = int(arguments["segment_id"])
    today = datetime(context.now.year, context.now.month, context.now.day)
    days = database.rows(
        "SELECT entered, departed FROM segment_days WHERE segment_id = ? AND day = ?", [id, today]
    )
    entered, left = days[0] if days else (0, 0)
    return {"members": members_of(database, [id])[id], "entered": entered, "left": left}


def members(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Members of ``segment_id`` in order of their ids, those ``after`` one, at most ``limit``."""
    limit = int(arguments.get("limit") or 100)
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidRequest(f"a page of {limit}", path="limit", expected=f"1 to {PAGE_MAX}")
    rows = database.rows(
        "SELECT p.subscriber_id, p.email FROM memberships m JOIN profiles p USING (subscriber_id)"
        " WHERE list_contains(m.segments, ?::INTEGER) AND m.subscriber_id > ?::BIGINT"
        " ORDER BY 1 LIMIT ?",
        [int(arguments["segment_id"]), int(arguments.get("after") or 0), limit],
    )
    return [{"subscriber_id": id, "email": email} for id, email in rows]


def overlap(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, int]]:
    """For each pair of ``segment_ids`` how many people are in both; a segment with itself: its
    members."""
    ids = [int(id) for id in arguments["segment_ids"]]
    if len(set(ids)) != len(ids) or not 1 <= len(ids) <= OVERLAP_MAX:
        raise InvalidRequest(
            f"{len(ids)} segments", path="segment_ids", expected=f"1 to {OVERLAP_MAX} different"
        )
    rows = database.rows(
        "WITH asked AS (SELECT list_intersect(segments, ?::INTEGER[]) AS found, count(*) AS people"
        " FROM memberships WHERE list_has_any(segments, ?::INTEGER[]) GROUP BY 1)"
        " SELECT a, b, sum(people)::BIGINT FROM (SELECT unnest(found) AS a, found, people"
        " FROM asked) x, LATERAL (SELECT unnest(x.found) AS b) y GROUP BY a, b ORDER BY a, b",
        [ids, ids],
    )
    return [{"a": a, "b": b, "people": people} for a, b, people in rows]


def growth(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Day by day (UTC) of the last ``days``: who ``entered`` and ``left`` ``segment_id``, and its
    ``members`` at the end of the day. People who were erased or merged away leave no day behind, so
    the size of a day long past may be a little lower than it was."""
    days = int(arguments.get("days") or 90)
    if not 1 <= days <= DAYS_MAX:
        raise InvalidRequest(f"{days} days", path="days", expected=f"1 to {DAYS_MAX}")
    id = int(arguments["segment_id"])
    today = datetime(context.now.year, context.now.month, context.now.day)
    first = today - timedelta(days=days - 1)
    moved = {
        day: (entered, left)
        for day, entered, left in database.rows(
            "SELECT day, entered, departed FROM segment_days WHERE segment_id = ? AND day >= ?",
            [id, first],
        )
    }
    size = members_of(database, [id])[id]
    answer = []
    for back in range(days):
        day = today - timedelta(days=back)
        entered, left = moved.get(day, (0, 0))
        answer.append({"day": as_text(day)[:10], "entered": entered, "left": left, "members": size})
        size -= entered - left
    return answer[::-1]


def drift(database: Database, context: Context, arguments: Mapping[str, Any]) -> dict[int, Any]:
    """For each live segment (or ``segment_id``): the people who are ``missing`` in it, and those
    who are ``wrong`` there, by its rule evaluated whole at this instant. Whoever changed within
    the last moments may be among them; the shard's own check leaves these out, and mends."""
    zone = str(context.settings.get("time_zone") or "UTC")
    index = read_index(database, zone)
    only = arguments.get("segment_id")
    if only is not None and int(only) not in index.segments:
        raise NotFound(f"no live segment {only}", path="segment_id")
    answer = {}
    for id in sorted(index.segments) if only is None else [int(only)]:
        member = moves(database, index.segments[id], context.now, zone)["member"]
        missing = sum(member.to_pylist())
        answer[id] = {"missing": missing, "wrong": len(member) - missing}
    return answer


QUERIES = {
    "membership": membership,
    "members": members,
    "overlap": overlap,
    "growth": growth,
    "drift": drift,
}
