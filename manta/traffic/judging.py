"""Hits judged in their shard: what their time and their company say, and what that says of earlier
hits of the same message.

Called within the decision that stores a batch, so a hit and the corrections that it brings are in
one journal entry. Most hits concern nobody but themselves and cost a look into a dictionary: the
database is asked only

- for hits of campaigns that were sent within the last minute (how soon after acceptance?),
- for opens by image proxies (long after acceptance somebody looks),
- for messages of which several links, or the decoy, were followed lately.

What was lately is a hint in memory, bounded, and lost with the process: a scan that a restart cuts
in two may pass for clicks until the past is judged again (``manta.traffic.reclassify``). A hint
only decides whether to look; what counts is what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa

from manta.command import Database
from manta.traffic.classifier import Signals, add, judge
from manta.traffic.together import (
    ALL_LINKS_SPAN,
    DECOY_SPAN,
    SOON_MAX,
    Fact,
    Stored,
    beside_each_other,
    read_properties,
    since_acceptance,
    write_properties,
)
from manta.traffic.user_agents import Agent

MESSAGES_KNOWN_MAX = 20_000  # of each generation of hints
# People of one look-up: for more of them DuckDB leaves the index and scans the table, as it does
# where a condition other than the person's stands in the statement.
LOOKED_UP_AT_ONCE = 40
FRESH_AGAIN = timedelta(seconds=1)
_GENERATION = max(DECOY_SPAN, ALL_LINKS_SPAN)
_SECOND = 1_000_000
HITS = ("opened", "clicked")

Message = tuple[int, int]  # subscriber id, message key


class Correction(NamedTuple):
    """A stored hit that is judged otherwise now. ``cause``: signs, joined by commas."""

    subscriber_id: int
    event_id: int
    human: float
    cause: str


@dataclass
class _Recent:
    """Hints: the last click of each message, scanned messages, campaigns that are being sent."""

    since: datetime = datetime.min
    clicks: dict[Message, tuple[int, str | None]] = field(default_factory=dict)
    older_clicks: dict[Message, tuple[int, str | None]] = field(default_factory=dict)
    scanned: dict[Message, int] = field(default_factory=dict)
    older_scanned: dict[Message, int] = field(default_factory=dict)
    fresh: frozenset[int] = frozenset()
    fresh_at: datetime = datetime.min

    @classmethod
    def of(cls, database: Database, now: datetime) -> _Recent:
        found: _Recent = database.hints.setdefault("traffic", cls())
        if now - found.since > _GENERATION or len(found.clicks) > MESSAGES_KNOWN_MAX:
            found.since = now
            found.older_clicks, found.clicks = found.clicks, {}
            found.older_scanned, found.scanned = found.scanned, {}
        if not timedelta(0) <= now - found.fresh_at < FRESH_AGAIN:
            found.fresh, found.fresh_at = _fresh(database, now), now
        return found

    def is_suspect(self, message: Message, at: int, item: str | None) -> bool:
        """Whether a click of this message makes it worth a look; the click is noted."""
        last = self.clicks.get(message) or self.older_clicks.get(message)
        self.clicks[message] = (at, item)
        if last is None or last[1] == item:
            return False
        return abs(at - last[0]) <= ALL_LINKS_SPAN.total_seconds() * _SECOND

    def is_scanned(self, message: Message, at: int) -> bool:
        scan = self.scanned.get(message) or self.older_scanned.get(message)
        return scan is not None and abs(at - scan) <= DECOY_SPAN.total_seconds() * _SECOND


def judge_hits(
    rows: pa.Table, database: Database, now: datetime
) -> tuple[pa.Table, pa.Table | None]:
    """The hits with what is known of them together, and the rows of ``traffic_corrections`` for
    stored ones; ``None``: nothing is corrected.

    ``rows`` are those that will be stored: of people who are here. Without ``human`` nothing is
    judged.
    """
    if not {"human", "campaign_id"} <= set(rows.column_names) or not rows.num_rows:
        return rows, None
    recent = _Recent.of(database, now)
    concerned = _concerned(rows, recent)
    if not concerned:
        return rows, None
    batch = _facts_of(rows, concerned)
    stored, sent = _look_up(database, concerned)
    changed: dict[int, tuple[float, Stored]] = {}
    found: list[tuple[int, _Hit, list[str]]] = []
    for message in concerned:
        old, new = stored.get(message, []), batch[message]
        together = beside_each_other([*(one.fact for one in old), *(one.fact for one in new)])
        for one in new:
            before = [x.fact for x in (*old, *new) if x.fact.type == "opened"]
            signs = list(together.get(one.fact.event_id, ()))
            signs += _timing(one, sent.get(message), before, recent.fresh)
            if signs:
                stays = one.stored._replace(signs=(*one.stored.signs, *signs))
                changed[one.row] = (add(one.human, signs), stays)
        if any(sign != "two_links" for signs in together.values() for sign in signs):
            recent.scanned[message] = max(_micros(one.fact.at) for one in new)
        for one in old:
            signs = [s for s in together.get(one.fact.event_id, ()) if s not in one.fact.signs]
            if signs:
                found.append((message[0], one, signs))
    return _with(rows, changed), _corrections(found, database, now)


class _Hit(NamedTuple):
    """A hit with its place: ``row`` of the batch, or -1 where it is stored already."""

    row: int
    fact: Fact
    stored: Stored
    human: float
    campaign_id: int | None = None


def _concerned(rows: pa.Table, recent: _Recent) -> list[Message]:
    """The messages whose hits are worth a look, in order."""
    columns = (
        rows["subscriber_id"].to_pylist(),
        rows["message_key"].to_pylist(),
        rows["type"].to_pylist(),
        rows["occurred_at"].cast(pa.int64()).to_pylist(),
        _column(rows, "item"),
        _column(rows, "properties"),
        rows["campaign_id"].to_pylist(),
    )
    found: dict[Message, None] = {}
    for person, key, type, at, item, text, campaign in zip(*columns, strict=True):
        message = (person, key)
        stored = read_properties(text)
        if "decoy" in stored.signs:
            recent.scanned[message] = at
            found[message] = None
        elif (
            campaign in recent.fresh
            or recent.is_scanned(message, at)
            or (type == "clicked" and recent.is_suspect(message, at, item))
            or (type == "opened" and stored.agent is Agent.IMAGE_PROXY)
        ):
            found[message] = None
    return list(found)


def _facts_of(rows: pa.Table, concerned: Iterable[Message]) -> dict[Message, list[_Hit]]:
    wanted: dict[Message, list[_Hit]] = {message: [] for message in concerned}
    keys = zip(rows["subscriber_id"].to_pylist(), rows["message_key"].to_pylist(), strict=True)
    numbers = [n for n, message in enumerate(keys) if message in wanted]
    for n, row in zip(numbers, rows.take(numbers).to_pylist(), strict=True):
        wanted[row["subscriber_id"], row["message_key"]].append(_hit(n, row))
    return wanted


def _hit(n: int, row: dict[str, Any]) -> _Hit:
    stored = read_properties(row.get("properties"))
    place = (row["event_id"], row["type"], row["occurred_at"], row.get("item"))
    fact = Fact(*place, stored.agent, stored.signs)
    human = row["human"]
    if human is None:  # of a past that nobody judged, which may not say who asked
        agent = fact.agent if stored.user_agent else Agent.BROWSER
        human = judge(Signals(fact.type, agent)).human
    return _Hit(n, fact, stored, human, row.get("campaign_id"))


def _look_up(
    database: Database, concerned: Sequence[Message]
) -> tuple[dict[Message, list[_Hit]], dict[Message, datetime]]:
    """The stored hits of these messages, and when each of them was accepted."""
    wanted = set(concerned)
    hits: dict[Message, list[_Hit]] = {}
    sent: dict[Message, datetime] = {}
    for first in range(0, len(concerned), LOOKED_UP_AT_ONCE):
        part = concerned[first : first + LOOKED_UP_AT_ONCE]
        rows = database.rows(
            "SELECT subscriber_id, message_key, type, event_id, occurred_at, item, properties,"
            " human, merge_id FROM (SELECT unnest(?::BIGINT[]) AS id) n"
            " JOIN events ON subscriber_id = n.id",
            [list({person for person, _ in part})],
        )
        names = ("type", "event_id", "occurred_at", "item", "properties", "human")
        for person, key, *rest, merge_id in rows:
            message = (person, key)
            if message not in wanted or merge_id is not None:  # a copy is about another's mail
                continue
            row = dict(zip(names, rest, strict=True))
            if row["type"] == "sent":
                sent[message] = row["occurred_at"]
            elif row["type"] in HITS:
                hits.setdefault(message, []).append(_hit(-1, row))
    return hits, sent


def _timing(
    one: _Hit, sent_at: datetime | None, opens: Iterable[Fact], fresh: frozenset[int]
) -> list[str]:
    if sent_at is None and one.campaign_id not in fresh:
        return []
    return since_acceptance(
        one.fact, sent_at, any(fact.at <= one.fact.at for fact in opens if fact is not one.fact)
    )


def _corrections(
    found: Sequence[tuple[int, _Hit, list[str]]], database: Database, now: datetime
) -> pa.Table | None:
    """The rows of what was found anew: signs that an earlier correction brought are left out."""
    if not found:
        return None
    known = {
        (person, event): tuple(filter(None, (cause or "").split(",")))
        for person, event, cause in database.rows(
            "SELECT subscriber_id, event_id, cause FROM traffic_corrections"
            " WHERE subscriber_id IN (SELECT unnest(?::BIGINT[]))",
            [list({person for person, *_ in found})],
        )
    }
    rows = []
    for person, one, signs in found:
        before = known.get((person, one.fact.event_id), ())
        fresh = [sign for sign in signs if sign not in before]
        if fresh:
            cause = ",".join((*before, *fresh))
            rows.append(Correction(person, one.fact.event_id, add(one.human, fresh), cause))
    return corrections_table(rows, now) if rows else None


def corrections_table(rows: Sequence[Correction], now: datetime) -> pa.Table:
    """Rows of ``traffic_corrections``; of one hit the last counts."""
    last = list({(row.subscriber_id, row.event_id): row for row in rows}.values())
    return pa.table(
        {
            "subscriber_id": pa.array([row.subscriber_id for row in last], pa.int64()),
            "event_id": pa.array([row.event_id for row in last], pa.int64()),
            "human": pa.array([row.human for row in last], pa.float64()),
            "cause": pa.array([row.cause for row in last], pa.string()),
            "changed_at": pa.array([now] * len(last), pa.timestamp("us")),
        }
    )


def _with(rows: pa.Table, changed: dict[int, tuple[float, Stored]]) -> pa.Table:
    if not changed:
        return rows
    human, properties = rows["human"].to_pylist(), _column(rows, "properties")
    for n, (probability, stored) in changed.items():
        human[n], properties[n] = probability, write_properties(stored)
    for name, values, kind in (
        ("human", human, pa.float64()),
        ("properties", properties, pa.string()),
    ):
        if name in rows.column_names:
            rows = rows.drop_columns([name])
        rows = rows.append_column(name, pa.array(values, kind))
    return rows


def _fresh(database: Database, now: datetime) -> frozenset[int]:
    """The campaigns of which a message was accepted within the last minute."""
    found = database.rows(
        "SELECT DISTINCT campaign_id FROM events WHERE type = 'sent' AND occurred_at >= ?"
        " AND campaign_id IS NOT NULL",
        [now - SOON_MAX],
    )
    return frozenset(campaign for (campaign,) in found)


def _column(rows: pa.Table, name: str) -> list[Any]:
    return rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows


def _micros(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1)) / timedelta(microseconds=1))
