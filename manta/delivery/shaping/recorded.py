"""What the ledger has on record, as observations: for replaying rules, and for rehearsals.

A row keeps the last word on its message and not those before it: of a message that was deferred
twice and then accepted, only the acceptance is left. So a replay sees fewer deferrals than there
were, and says what would have happened at least. The site of a message is not on record; its
recipient's domain stands in where a provider has many.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Protocol

from manta.delivery.campaign import CampaignPlan
from manta.delivery.lanes import OTHERS
from manta.delivery.ledger import State
from manta.delivery.reputation.observations import BounceClass, Observed, Seen
from manta.delivery.shaping.shaping import Shaping

ROWS_AT_ONCE = 10_000

_SEEN = {
    State.ACCEPTED: Seen.ACCEPTED,
    State.FAILED: Seen.FAILED,
    State.PLANNED: Seen.DEFERRED,  # with a reply: refused for now, due again
    State.EXPIRED: Seen.DEFERRED,  # refused for now until its time had passed
}
_QUERY = f"""
SELECT date_trunc('second', changed_at), state, coalesce(source, ''), coalesce(provider, ''),
       coalesce(domain, ''), campaign_id, coalesce(bounce_class, ''), coalesce(category, ''),
       coalesce(reply_code, 0), CASE WHEN state = '{State.ACCEPTED}' THEN ''
                                     ELSE coalesce(reply, '') END AS reply, count(*)
FROM ledger
WHERE changed_at >= ? AND channel = 'email' AND source IS NOT NULL
  AND (state IN ('{State.ACCEPTED}', '{State.FAILED}')
       OR (state IN ('{State.PLANNED}', '{State.EXPIRED}') AND reply_code > 0))
GROUP BY ALL
ORDER BY 1, 3, 4, 5, 6, 2, 10
"""


class Connection(Protocol):
    """What is needed of a DuckDB connection with the lake's views."""

    def execute(self, query: str, parameters: Any = None) -> Any: ...


def recorded(connection: Connection, since: datetime, shaping: Shaping) -> Iterator[Observed]:
    """What became of messages since an instant, in order of time, like ones of a second together.

    ``connection``: of ``manta.store.lake.open``. Rows come a few thousand at a time, whatever their
    number. Of ``shaping`` only the providers count: to name those of rows that have none.
    """
    domains = _sending_domains(connection)
    found = connection.execute(_QUERY, [since])
    while rows := found.fetchmany(ROWS_AT_ONCE):
        for row in rows:
            yield _observed(row, domains, shaping)


def _observed(row: tuple[Any, ...], domains: dict[int, str], shaping: Shaping) -> Observed:
    at, state, source, provider, domain, campaign, bounce, category, code, reply, messages = row
    seen = _SEEN[State(state)]
    provider = provider or shaping.provider_of(domain) or domain
    is_known = provider in shaping.providers
    return Observed(
        at,
        seen,
        domains.get(campaign or 0, ""),
        source,
        provider,
        domain if is_known and provider != OTHERS else provider,
        campaign or 0,
        BounceClass(bounce) if bounce in set(BounceClass) else BounceClass.NONE,
        category,
        code,
        reply,
        is_internal=code == 0 and seen is not Seen.ACCEPTED,
        messages=messages,
    )


def _sending_domains(connection: Connection) -> dict[int, str]:
    rows = connection.execute("SELECT campaign_id, any_value(definition) FROM campaigns GROUP BY 1")
    return {
        campaign: CampaignPlan.from_json(definition).sending_domain
        for campaign, definition in rows.fetchall()
        if definition
    }
