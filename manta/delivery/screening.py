"""Who may be mailed now: one question, asked when a message is planned and again when it is leased.

The answer is a reason not to send, or nothing. The reasons are the ledger's reasons for
``suppressed`` rows, besides those that a suppression brings itself (``hard_bounce``,
``complaint``, …):

    unknown_person  no profile (erased since)
    merged          the profile lives on under another id, which has its own row
    no_address      nothing to send to
    no_consent      marketing without a subscribed consent for the topic
    unsubscribed    marketing after an unsubscribe from the topic

Transactional and test messages need no consent, and an ``unsubscribed`` suppression does not stop
them; every other suppression does.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa

from manta.command import Database
from manta.delivery.campaign import MARKETING_ONLY_SUPPRESSIONS

# Joins on the bare id first: comparing words of a million rows costs more than all the rest.
_SCREEN = """
WITH w AS (SELECT * FROM wanted),
people AS (SELECT p.* FROM profiles p WHERE {of_wanted}),
consented AS MATERIALIZED (
    SELECT c.subscriber_id, c.channel, c.topic, c.status FROM consents c
    WHERE c.subscriber_id IN (SELECT subscriber_id FROM w)
),
stopped AS (
    SELECT s.channel, s.address, s.reason, s.reason IN ({marketing_only}) AS marketing_only
    FROM suppressions s WHERE s.expires_at IS NULL OR s.expires_at > ?
)
SELECT w.subscriber_id, w.ordinal, p.email,
    lower(regexp_extract(p.email, '@([^@]*)$', 1)) AS domain,
    CASE
        WHEN p.subscriber_id IS NULL THEN 'unknown_person'
        WHEN a.from_id IS NOT NULL THEN 'merged'
        WHEN p.email IS NULL OR p.email = '' THEN 'no_address'
        WHEN s.reason IS NOT NULL THEN s.reason
        WHEN w.kind = 'marketing' AND c.status = 'unsubscribed' THEN 'unsubscribed'
        WHEN w.kind = 'marketing' AND c.status IS DISTINCT FROM 'subscribed' THEN 'no_consent'
    END AS refusal{columns}
FROM w
LEFT JOIN people p ON p.subscriber_id = w.subscriber_id
LEFT JOIN aliases a ON a.from_id = w.subscriber_id
LEFT JOIN consented c
    ON c.subscriber_id = w.subscriber_id AND c.channel = w.channel AND c.topic = w.topic
LEFT JOIN stopped s
    ON s.channel = w.channel AND s.address = p.email
    AND (w.kind = 'marketing' OR NOT s.marketing_only)
ORDER BY w.ordinal
"""
# An index scan answers a short list of ids; a list of thousands is better joined.
_LISTED_MAX = 256


def screen(
    database: Database, wanted: pa.Table, now: datetime, columns: Sequence[str] = ()
) -> pa.Table:
    """One row per row of ``wanted`` in its order, with ``refusal`` NULL where sending is allowed.

    ``wanted`` has ``subscriber_id``, ``ordinal`` (0, 1, …), ``kind``, ``channel`` and ``topic``.
    ``columns`` are further columns of ``profiles`` to bring along; they must exist.
    """
    ids = wanted.column("subscriber_id").to_pylist()
    if len(ids) <= _LISTED_MAX:
        of_wanted = f"p.subscriber_id IN ({', '.join('?' * len(ids))})" if ids else "false"
        params: list[object] = list(ids)
    else:
        of_wanted = "p.subscriber_id IN (SELECT subscriber_id FROM w)"
        params = []
    sql = _SCREEN.format(
        of_wanted=of_wanted,
        marketing_only=", ".join(f"'{reason}'" for reason in MARKETING_ONLY_SUPPRESSIONS),
        columns="".join(f", p.{name}" for name in columns),
    )
    return database.table(sql, [*params, now], wanted=wanted)
