"""Reads about campaigns and messages. People live in one shard, so counts of shards add up.

Every function takes (database, context, arguments) and answers plain values; ``QUERIES`` names
them. Whoever asks all shards adds the counts and merges the lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manta.command import Context, Database
from manta.delivery.hooks import work
from manta.delivery.ledger import Accounting, State
from manta.delivery.rehearsal import audiences
from manta.delivery.reputation.recall import observed
from manta.errors import InvalidRequest
from manta.schema import MESSAGE_EVENTS

RECIPIENTS_MAX = 1_000
HISTORY_MAX = 500
STEPS_MAX = 2_000

Arguments = Mapping[str, Any]

_RECIPIENT = (
    "subscriber_id",
    "message_key",
    "state",
    "reason",
    "domain",
    "attempts",
    "sender",
    "source",
    "reply_code",
    "reply",
    "due_at",
    "planned_at",
    "changed_at",
    "bounced_at",
)
_BY_MACHINE = "coalesce(e.properties, '') LIKE '%\"machine\": true%'"


def accounting(database: Database, context: Context, arguments: Arguments) -> dict[str, Any]:
    """``states``: (state, messages); ``reasons``: (state, reason, messages), the most first.

    ``planned_total`` is no sum of these: it is what was counted when the rows were written.
    """
    rows = database.rows(
        "SELECT state, reason, sum(messages)::BIGINT FROM ("
        "SELECT state, coalesce(reason, '') AS reason, 1 AS messages FROM ledger"
        " WHERE campaign_id = ?"
        " UNION ALL SELECT state, reason, messages FROM ledger_campaigns WHERE campaign_id = ?"
        ") GROUP BY ALL ORDER BY 3 DESC, 1, 2",
        [arguments["campaign_id"]] * 2,
    )
    planned = database.rows(
        "SELECT planned_rows FROM campaigns WHERE campaign_id = ? AND planned_rows IS NOT NULL",
        [arguments["campaign_id"]],
    )
    counts = Accounting.of((state, count) for state, _, count in rows)
    return {
        "states": [(str(state), count) for state, count in counts.counts.items()],
        "reasons": [(state, reason, count) for state, reason, count in rows if reason],
        "pending": counts.pending,
        "planned_total": planned[0][0] if planned else 0,
    }


def failures(database: Database, context: Context, arguments: Arguments) -> list[dict[str, Any]]:
    """Why messages failed or wait after a refusal, the most frequent first, each with a reply."""
    rows = database.table(
        "SELECT state, reason, reply_code, count(*) AS messages, min(reply) AS example"
        " FROM ledger WHERE campaign_id = ?"
        " AND state IN ('failed', 'uncertain', 'expired', 'planned')"
        " AND (reason IS NOT NULL OR reply_code IS NOT NULL)"
        " GROUP BY ALL ORDER BY messages DESC, state, reason, reply_code LIMIT 200",
        [arguments["campaign_id"]],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def timeline(database: Database, context: Context, arguments: Arguments) -> list[dict[str, Any]]:
    """Per step of ``step_s`` seconds (60): messages by final state, and events by type."""
    step_s = int(arguments.get("step_s", 60))
    if step_s < 1:
        raise InvalidRequest("a step of no length", path="step_s", expected="seconds, 1 or more")
    rows = database.table(
        'SELECT time_bucket(to_seconds(?), since) AS "at", what, count(*) AS count FROM ('
        " SELECT changed_at AS since, state AS what FROM ledger WHERE campaign_id = ?"
        " AND state NOT IN ('planned', 'leased', 'orphaned')"
        " UNION ALL SELECT occurred_at, type FROM events WHERE campaign_id = ? AND type IN"
        " ('opened', 'clicked', 'unsubscribed', 'complained', 'bounced'))"
        ' GROUP BY ALL ORDER BY "at", what LIMIT ?',
        [step_s, arguments["campaign_id"], arguments["campaign_id"], STEPS_MAX],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def campaign_report(database: Database, context: Context, arguments: Arguments) -> dict[str, Any]:
    """Accounting, and for each type of message event ``{"unique", "total", "by_machine"}``.

    ``unique`` counts messages with at least one such event by a human.
    """
    rows = database.rows(
        "SELECT e.type, count(DISTINCT e.message_key || '|' || e.subscriber_id)"
        f" FILTER (NOT {_BY_MACHINE}), count(DISTINCT e.event_id),"
        f" count(DISTINCT e.event_id) FILTER ({_BY_MACHINE})"
        " FROM events e WHERE e.campaign_id = ? GROUP BY 1",
        [arguments["campaign_id"]],
    )
    events = {name: {"unique": 0, "total": 0, "by_machine": 0} for name in MESSAGE_EVENTS}
    for name, unique, total, by_machine in rows:
        if name in events:
            events[name] = {"unique": unique, "total": total, "by_machine": by_machine}
    return {"accounting": accounting(database, context, arguments), "events": events}


def recipients(database: Database, context: Context, arguments: Arguments) -> list[dict[str, Any]]:
    """A page of a campaign's messages in the order of their ids, with the address.

    ``after``: the last (subscriber_id, message_key) of the page before; ``state``: only these;
    ``limit`` up to 1,000.
    """
    limit = int(arguments.get("limit", 100))
    if not 0 < limit <= RECIPIENTS_MAX:
        raise InvalidRequest("rows per page", path="limit", expected=f"1 to {RECIPIENTS_MAX}")
    after = arguments.get("after") or (-1, 0)
    state = arguments.get("state")
    if state is not None and state not in set(State):
        raise InvalidRequest(f"no state {state!r:.40}", path="state", expected=", ".join(State))
    columns = ", ".join(f"l.{name}" for name in _RECIPIENT)
    rows = database.table(
        f"SELECT {columns}, coalesce(l.send_to, p.email) AS email"
        " FROM (SELECT * FROM ledger WHERE campaign_id = ?"
        " AND (subscriber_id, message_key) > (?, ?) AND (? IS NULL OR state = ?)"
        " ORDER BY subscriber_id, message_key LIMIT ?) l"
        " LEFT JOIN profiles p ON p.subscriber_id = l.subscriber_id"
        " ORDER BY l.subscriber_id, l.message_key",
        [arguments["campaign_id"], after[0], after[1], state, state, limit],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def recipient(database: Database, context: Context, arguments: Arguments) -> dict[str, Any] | None:
    """One message with the history of what came of it; None where there is none."""
    ref = [arguments["subscriber_id"], arguments["message_key"]]
    rows = database.table(
        f"SELECT campaign_id, kind, channel, {', '.join(_RECIPIENT)} FROM ledger"
        " WHERE subscriber_id = ? AND message_key = ?",
        ref,
    ).to_pylist()
    if not rows:
        return None
    history = database.table(
        "SELECT occurred_at, type, item, properties FROM events"
        " WHERE subscriber_id = ? AND message_key = ? ORDER BY occurred_at, type LIMIT ?",
        [*ref, HISTORY_MAX],
    ).to_pylist()
    found: dict[str, Any] = rows[0] | {"history": history}
    return found


def next_due(database: Database, context: Context, arguments: Arguments) -> dict[str, Any]:
    """``due``: messages that may be leased now; ``next_due_at``: when the next ones may."""
    due, next_due_at = database.rows(
        "SELECT count(*) FILTER (due_at <= ?), min(due_at) FILTER (due_at > ?) FROM ledger"
        " WHERE due_at IS NOT NULL"
        " AND campaign_id IN (SELECT campaign_id FROM campaigns WHERE state = 'running')",
        [context.now, context.now],
    )[0]
    return {"due": due, "next_due_at": next_due_at}


QUERIES = {
    "work": work,
    "accounting": accounting,
    "failures": failures,
    "timeline": timeline,
    "campaign_report": campaign_report,
    "recipients": recipients,
    "recipient": recipient,
    "next_due": next_due,
    "observed": observed,
    **audiences.QUERIES,
}
