"""What a shard has on record of the last days, as observations: windows are rebuilt from it, laws
are rehearsed on it, and what people do (open, click, unsubscribe) is read from it now and then.

Opens and clicks of machines are left out (``manta.traffic``): engagement is people's.
People's acts decide nothing about a lane, so the hot path of tracking does not look up for every
open where its mail went; Reputation asks for all of a minute at once.

Counted in steps that are no finer than the windows' grain at that age, so the answer is small
whatever was sent. What only a live observation knows is missing: of a message that was deferred
several times only the last is on record, and the site is taken to be the provider. Tests, which go
to ourselves, are left out, and so is what never reached a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from manta.command import Context, Database
from manta.delivery.campaign import CampaignPlan
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.errors import InvalidRequest

DAYS_MAX = 7
ROWS_MAX = 50_000
_ENGAGED = (Seen.OPENED, Seen.CLICKED, Seen.UNSUBSCRIBED)


class Part(StrEnum):
    ALL = "all"
    SERVERS = "servers"  # told apart by the servers' words, as rules need them; with complaints
    PEOPLE = "people"  # opens, clicks, unsubscribes


_OUTCOMES = """
    SELECT changed_at AS since, CASE state WHEN 'planned' THEN 'deferred' ELSE state END AS seen,
        source, provider, campaign_id,
        CASE state WHEN 'accepted' THEN NULL ELSE bounce_class END AS bounce_class,
        CASE state WHEN 'accepted' THEN NULL ELSE category END AS category,
        CASE state WHEN 'accepted' THEN NULL ELSE reply_code END AS code,
        CASE state WHEN 'accepted' THEN NULL ELSE reply END AS reply
    FROM ledger
    WHERE changed_at >= $since AND changed_at < $until AND kind <> 'test'
        AND source IS NOT NULL AND provider IS NOT NULL
        AND (state = 'accepted' OR (state = 'failed' AND reply_code >= 400)
            OR (state = 'planned' AND attempts > 0 AND reply_code BETWEEN 400 AND 499))
    UNION ALL
    SELECT bounced_at, 'bounced', source, provider, campaign_id, bounce_class, category,
        reply_code, reply
    FROM ledger
    WHERE bounced_at >= $since AND bounced_at < $until AND kind <> 'test' AND state = 'accepted'
        AND source IS NOT NULL AND provider IS NOT NULL
"""
_EVENTS = """
    SELECT e.occurred_at AS since, e.type AS seen, l.source, l.provider, l.campaign_id,
        NULL AS bounce_class, NULL AS category, NULL AS code, NULL AS reply
    FROM events e JOIN ledger l
        ON l.subscriber_id = e.subscriber_id AND l.message_key = e.message_key
    WHERE e.occurred_at >= $since AND e.occurred_at < $until AND l.kind <> 'test'
        AND e.merge_id IS NULL AND e.type IN ($types) AND (e.human IS NULL OR e.human >= 0.5)
        AND l.source IS NOT NULL AND l.provider IS NOT NULL
"""


def observed(database: Database, context: Context, arguments: Mapping[str, Any]) -> list[Observed]:
    """What was seen from ``since`` (at most 7 days ago) to ``until`` (now), oldest first.

    ``part``: see ``Part``. At most ``ROWS_MAX`` rows, the newest.
    """
    until: datetime = arguments.get("until") or context.now
    since: datetime = arguments.get("since") or until - timedelta(days=DAYS_MAX)
    if not timedelta(0) <= until - since <= timedelta(days=DAYS_MAX):
        raise InvalidRequest(
            "not a period that is on record", path="since", expected=f"up to {DAYS_MAX} days"
        )
    sql, values = _numbered(
        _statement(Part(arguments.get("part", Part.ALL))),
        {"since": since, "until": until, "most": ROWS_MAX},
    )
    domains = _sending_domains(database)
    found = [_observed(row, domains) for row in database.rows(sql, values)]
    found.reverse()
    return found


def _statement(part: Part) -> str:
    types = {Part.ALL: (Seen.COMPLAINED, *_ENGAGED), Part.SERVERS: (Seen.COMPLAINED,)}
    events = _EVENTS.replace("$types", ", ".join(f"'{seen}'" for seen in types.get(part, _ENGAGED)))
    source = events if part is Part.PEOPLE else f"{_OUTCOMES} UNION ALL {events}"
    words = "code, reply" if part is Part.SERVERS else "NULL AS code, NULL AS reply"
    return (
        "SELECT CASE WHEN since >= $until - INTERVAL 1 HOUR"
        " THEN time_bucket(INTERVAL 1 MINUTE, since)"
        " WHEN since >= $until - INTERVAL 1 DAY THEN time_bucket(INTERVAL 30 MINUTE, since)"
        " ELSE time_bucket(INTERVAL 1 HOUR, since) END AS since, seen, source, provider,"
        f" campaign_id, bounce_class, category, {words}, count(*) AS messages"
        f" FROM ({source}) GROUP BY ALL ORDER BY 1 DESC LIMIT $most"
    )


def _observed(row: tuple[Any, ...], domains: Mapping[int, str]) -> Observed:
    at, seen, source, provider, campaign_id, bounce_class, category, code, reply, messages = row
    return Observed(
        at,
        Seen(seen),
        domains.get(campaign_id, ""),
        source,
        provider,
        provider,
        campaign_id or 0,
        BounceClass(bounce_class or ""),
        category or "",
        code or 0,
        reply or "",
        messages=messages,
    )


def _numbered(sql: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """``$name`` becomes ``$1``, ``$2``, …, since statements bind by place."""
    for place, name in enumerate(values, 1):
        sql = sql.replace(f"${name}", f"${place}")
    return sql, list(values.values())


def _sending_domains(database: Database) -> dict[int, str]:
    rows: Iterable[tuple[Any, ...]] = database.rows("SELECT campaign_id, definition FROM campaigns")
    return {id: CampaignPlan.from_json(text).sending_domain for id, text in rows}
