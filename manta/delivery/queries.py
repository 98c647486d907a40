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
# Of opens and clicks (manta.traffic); what nobody judged counts as a person's.
BY_PERSON = "(e.human IS NULL OR e.human >= 0.5)"


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
    """Per step of ``step_s`` seconds (60): messages by final state, and events by type; opens and
    clicks by machines apart, as ``opened_by_machine`` and ``clicked_by_machine``."""
    step_s = int(arguments.get("step_s", 60))
    if step_s < 1:
        raise InvalidRequest("a step of no length", path="step_s", expected="seconds, 1 or more")
    rows = database.table(
        'SELECT time_bucket(to_seconds(?), since) AS "at", what, count(*) AS count FROM ('
        " SELECT changed_at AS since, state AS what FROM ledger WHERE campaign_id = ?"
        " AND state NOT IN ('planned', 'leased', 'orphaned')"
        " UNION ALL SELECT occurred_at,"
        f" CASE WHEN {BY_PERSON} THEN type ELSE type || '_by_machine' END"
        " FROM events e WHERE campaign_id = ? AND merge_id IS NULL AND type IN"
        " ('opened', 'clicked', 'unsubscribed', 'complained', 'bounced'))"
        ' GROUP BY ALL ORDER BY "at", what LIMIT ?',
        [step_s, arguments["campaign_id"], arguments["campaign_id"], STEPS_MAX],
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found


def campaign_report(database: Database, context: Context, arguments: Arguments) -> dict[str, Any]:
    """Accounting, and for each type of message event two figures, by people and by all:
    ``unique`` and ``unique_all`` count messages with at least one such event, ``by_people`` and
    ``total`` the events; ``by_machine`` is what the last two differ by.
    """
    message = "e.message_key || '|' || e.subscriber_id"
    rows = database.rows(
        f"SELECT e.type, count(DISTINCT {message}) FILTER ({BY_PERSON}),"
        f" count(DISTINCT {message}), count(DISTINCT e.event_id) FILTER ({BY_PERSON}),"
        " count(DISTINCT e.event_id) FROM events e"
        " WHERE e.campaign_id = ? AND e.merge_id IS NULL GROUP BY 1",  # no copies of merges
        [arguments["campaign_id"]],
    )
    events = {name: _figures(0, 0, 0, 0) for name in MESSAGE_EVENTS}
    events |= {name: _figures(*counts) for name, *counts in rows if name in events}
    return {"accounting": accounting(database, context, arguments), "events": events}


def _figures(unique: int, unique_all: int, by_people: int, total: int) -> dict[str, int]:
    return {
        "unique": unique,
        "unique_all": unique_all,
        "by_people": by_people,
        "total": total,
        "by_machine": total - by_people,
    }


def recipients(database: Database, context: Context, arguments: Arguments) -> list[dict[str, Any]]:
    """A page of a campaign's messages in the order of their ids, with the address.

    ``opens`` and ``clicks`` are people's, ``opens_all`` and ``clicks_all`` also machines'.
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
    acts = _acts(database, arguments["campaign_id"], [row["subscriber_id"] for row in found])
    none = dict.fromkeys(("opens", "opens_all", "clicks", "clicks_all"), 0)
    for row in found:
        row |= acts.get((row["subscriber_id"], row["message_key"]), none)
    return found


def _acts(
    database: Database, campaign_id: int, people: list[int]
) -> dict[tuple[int, int], dict[str, int]]:
    """The opens and clicks of these people's messages of a campaign."""
    rows = database.rows(
        "SELECT e.subscriber_id, e.message_key,"
        f" count(*) FILTER (e.type = 'opened' AND {BY_PERSON}),"
        " count(*) FILTER (e.type = 'opened'),"
        f" count(*) FILTER (e.type = 'clicked' AND {BY_PERSON}),"
        " count(*) FILTER (e.type = 'clicked')"
        " FROM (SELECT unnest(?::BIGINT[]) AS id) n JOIN events e ON e.subscriber_id = n.id"
        " WHERE e.campaign_id = ? AND e.merge_id IS NULL AND e.type IN ('opened', 'clicked')"
        " GROUP BY ALL",
        [people, campaign_id],
    )
    names = ("opens", "opens_all", "clicks", "clicks_all")
    return {(person, key): dict(zip(names, n, strict=True)) for person, key, *n in rows}


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
        "SELECT occurred_at, type, item, properties, human FROM events"
        " WHERE subscriber_id = ? AND message_key = ? AND merge_id IS NULL"
        " ORDER BY occurred_at, type LIMIT ?",
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
