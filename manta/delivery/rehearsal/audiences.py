"""Reads for rehearsals: where an audience's mail would go, and what became of a campaign's.

Counts alone, bounded by the number of domains or providers that are named, so that a shard of
millions answers with little. Shards' answers add up. Who may be mailed is said as
``manta.delivery.screening`` says it when a campaign is planned, for all people in one statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manta.command import Context, Database
from manta.delivery.campaign import MARKETING_ONLY_SUPPRESSIONS, Kind
from manta.errors import InvalidRequest
from manta.rules.loading import columns_of_profiles, has_past
from manta.rules.scope import without_unknown
from manta.rules.sql import compile_sql
from manta.rules.tree import parse
from manta.schema import AttributeType

DOMAINS_MAX = 2_000
PROVIDERS_MAX = 1_000


def audience_domains(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """``domains``: (domain, messages, of them to engaged people), the ``limit`` with most;
    ``rest``: how many other domains, their messages and engaged; ``left_out``: people of the
    audience who would be suppressed.

    ``rule`` is a rule's JSON with ``attributes`` as declared; ``kind``, ``channel`` and ``topic``
    are the campaign's; the rule is to hold at ``now``.
    """
    limit = int(arguments.get("limit") or DOMAINS_MAX)
    if not 0 < limit <= DOMAINS_MAX:
        raise InvalidRequest(f"{limit} domains", path="limit", expected=f"1 to {DOMAINS_MAX:,}")
    types = {name: AttributeType(kind) for name, kind in arguments["attributes"].items()}
    rule = without_unknown(parse(arguments["rule"], types), columns_of_profiles(database))
    now = arguments.get("now") or context.now
    zone = context.settings.get("time_zone") or "UTC"
    chosen = compile_sql(rule, now, zone, has_past=has_past(database))
    screens, values = _screens(arguments, now)
    rows = database.rows(
        f"WITH people AS (SELECT p.subscriber_id, lower(p.email) AS address FROM profiles p"
        f" SEMI JOIN ({chosen.sql}) chosen ON chosen.subscriber_id = p.subscriber_id),"
        f" mailed AS (SELECT * FROM people WHERE coalesce(address, '') <> '' AND {screens}),"
        " engaged AS (SELECT DISTINCT subscriber_id FROM events"
        " WHERE type IN ('opened', 'clicked')"
        " AND coalesce(properties, '') NOT LIKE '%\"machine\": true%'),"
        " counted AS (SELECT split_part(m.address, '@', -1) AS domain, count(*) AS messages,"
        " count(e.subscriber_id) AS engaged FROM mailed m"
        " LEFT JOIN engaged e ON e.subscriber_id = m.subscriber_id GROUP BY 1),"
        " ranked AS (SELECT *, row_number() OVER (ORDER BY messages DESC, domain) AS place"
        " FROM counted)"
        " SELECT 'named', domain, 1, messages, engaged FROM ranked WHERE place <= ?"
        " UNION ALL SELECT 'rest', '', count(*), coalesce(sum(messages), 0)::BIGINT,"
        " coalesce(sum(engaged), 0)::BIGINT FROM ranked WHERE place > ?"
        " UNION ALL SELECT 'all', '', 0, count(*), 0 FROM people",
        [*chosen.params, *values, limit, limit],
    )
    named = [(domain, n, e) for kind, domain, _, n, e in rows if kind == "named"]
    rest = next((of, n, e) for kind, _, of, n, e in rows if kind == "rest")
    everybody = next(n for kind, _, _, n, _ in rows if kind == "all")
    named.sort(key=lambda row: (-row[1], row[0]))
    mailed = sum(n for _, n, _ in named) + rest[1]
    return {"domains": named, "rest": rest, "left_out": everybody - mailed}


def _screens(arguments: Mapping[str, Any], now: Any) -> tuple[str, list[Any]]:
    """Conditions on ``people``: not suppressed, and consented where it is marketing."""
    channel, is_marketing = arguments["channel"], arguments["kind"] == Kind.MARKETING
    sql = (
        "address NOT IN (SELECT address FROM suppressions WHERE channel = ? AND address IS NOT NULL"
        " AND (expires_at IS NULL OR expires_at > ?)"
    )
    values: list[Any] = [channel, now]
    if not is_marketing:
        marks = ", ".join("?" for _ in MARKETING_ONLY_SUPPRESSIONS)
        sql += f" AND reason NOT IN ({marks})"
        values += sorted(MARKETING_ONLY_SUPPRESSIONS)
    sql += ")"
    if is_marketing:
        sql += (
            " AND subscriber_id IN (SELECT subscriber_id FROM consents"
            " WHERE channel = ? AND topic = ? AND status = 'subscribed')"
        )
        values += [channel, arguments["topic"]]
    return sql, values


def provider_outcomes(
    database: Database, context: Context, arguments: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What became of a campaign's messages by provider, those of most messages first; suppressed
    and cancelled ones are left out. ``deferred``: put off at least once; ``pending``: not settled;
    ``last_at``: when the last was settled. The provider is empty where none was ever tried."""
    rows = database.table(
        "SELECT coalesce(provider, '') AS provider, count(*) AS messages,"
        " count(*) FILTER (state = 'accepted') AS accepted,"
        " count(*) FILTER (attempts > 1 OR (attempts = 1 AND state IN ('planned', 'expired')))"
        " AS deferred,"
        " count(*) FILTER (state = 'failed') AS failed,"
        " count(*) FILTER (state = 'expired') AS expired,"
        " count(*) FILTER (state IN ('planned', 'leased', 'orphaned')) AS pending,"
        " max(changed_at) FILTER (state NOT IN ('planned', 'leased', 'orphaned')) AS last_at"
        " FROM ledger WHERE campaign_id = ? AND state NOT IN ('suppressed', 'cancelled')"
        " GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?",
        [arguments["campaign_id"], PROVIDERS_MAX],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


QUERIES = {"audience_domains": audience_domains, "provider_outcomes": provider_outcomes}
